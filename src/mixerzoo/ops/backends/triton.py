"""The fused kernels of :mod:`mixerzoo.kernels`; Triton is imported when one of them first runs."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from mixerzoo.config import Gelu
from mixerzoo.ops.problem import Backend, Branch, Gradients, Implementation, Problem, Saved


def _token_forward(branch: Branch, eps: float, act: Gelu, save: bool) -> tuple[Tensor, Saved]:  # noqa: ARG001
    from mixerzoo.kernels.branches import token_mlp_forward

    norm, weights = branch[1:3], branch[3:7]
    out, mean, rstd = token_mlp_forward(branch.x, norm, weights, branch.keep, eps, act)
    return out, Saved(mean, rstd, out.new_empty(0))


def _token_backward(g: Tensor, branch: Branch, saved: Saved, eps: float, act: Gelu) -> Gradients:  # noqa: ARG001
    from mixerzoo.kernels.branches import token_mlp_backward

    norm, weights, stats = branch[1:3], branch[3:7], (saved.mean, saved.rstd)
    return token_mlp_backward(g, branch.x, stats, norm, weights, branch.keep, act)


def _channel_forward(branch: Branch, eps: float, act: Gelu, save: bool) -> tuple[Tensor, Saved]:
    from mixerzoo.kernels.branches import channel_mlp_forward

    norm, weights = branch[1:3], branch[3:7]
    out, *saved = channel_mlp_forward(branch.x, norm, weights, branch.keep, eps, act, save)
    return out, Saved(*saved)


def _channel_backward(g: Tensor, branch: Branch, saved: Saved, eps: float, act: Gelu) -> Gradients:
    from mixerzoo.kernels.branches import channel_mlp_backward

    norm, weights, stats = branch[1:3], branch[3:7], (saved.mean, saved.rstd)
    return channel_mlp_backward(g, branch.x, stats, saved.hidden, norm, weights, branch.keep, eps, act)


def interpreted() -> bool:
    """Whether Triton's own switch asks for interpretation on the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")  # as Triton reads it


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _obstacle(problem: Problem) -> str | None:
    if not _installed():
        return "Triton is not installed"
    if problem.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"its kernels have no {str(problem.dtype).removeprefix('torch.')}"
    if problem.device.type == "cuda":
        if torch.version.hip is not None:
            return "its kernels are written for CUDA, and this build of PyTorch is for ROCm"
        if torch.cuda.get_device_capability(problem.device) < (8, 0):
            return "its kernels need compute capability 8.0 (Ampere) or later"
    elif not (problem.device.type == "cpu" and interpreted()):
        return f"its kernels run on CUDA devices, not on {problem.device.type}"
    return _no_tile(problem) if problem.op == "token_mlp" else None


def _no_tile(problem: Problem) -> str | None:
    from mixerzoo.kernels.branches import token_tiles
    from mixerzoo.kernels.launch import card_of
    from mixerzoo.kernels.token_tiles import MAX_TOKENS

    if problem.tokens > MAX_TOKENS:
        return f"{problem.tokens} tokens do not fit into a multiprocessor's registers (at most {MAX_TOKENS} do)"
    card, shape = card_of(problem.device), (problem.tokens, problem.channels, problem.hidden)
    if token_tiles(card, shape, problem.dtype.itemsize, problem.act) is None:
        return f"no tile fits into {card.shared_memory} bytes of shared memory"
    return None


def _reservation(problem: Problem) -> str | None:
    if problem.device.type != "cuda":
        return "interpreted kernels are for tests"
    if problem.dtype == torch.float32 and not problem.tf32:
        return "float32 products without TF32 use no tensor cores, so there is nothing to gain"
    return None


BACKEND = Backend(
    name="triton",
    rank=10,
    traceable=False,
    obstacle=_obstacle,
    reservation=_reservation,
    implementations={
        "token_mlp": Implementation(_token_forward, _token_backward),
        "channel_mlp": Implementation(_channel_forward, _channel_backward, saves_hidden=True),
    },
)
