"""Channel mixing with GELU in the epilogue of cuBLASLt's product.

``torch._addmm_activation`` is the only door PyTorch has to that epilogue. On CUDA it is the tanh flavour, right for
Google's weights; elsewhere it is erf. It returns only what GELU makes of the product, so the backward pass computes the
product again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixerzoo.config import Gelu
from mixerzoo.ops.backends.unfused import channel_backward, channel_residual, normalise
from mixerzoo.ops.problem import Backend, Branch, Implementation, Problem, Saved


def _forward(branch: Branch, eps: float, act: Gelu, save: bool) -> tuple[Tensor, Saved]:  # noqa: ARG001
    y, mean, rstd = normalise(branch, eps)
    z = torch._addmm_activation(branch.b1, y.flatten(0, 1), branch.w1.t(), use_gelu=True)
    z = z.view(*y.shape[:-1], z.shape[-1])
    return channel_residual(branch, z), Saved(mean, rstd, y.new_empty(0))


def _obstacle(problem: Problem) -> str | None:
    if problem.device.type != "cuda":
        return f"its epilogue exists on CUDA devices only, not on {problem.device.type}"
    if torch.version.hip is not None:
        return "its epilogue is cuBLASLt's, and this build of PyTorch is for ROCm"
    if problem.act != "tanh":
        return f"its epilogue is the tanh GELU and these weights need {problem.act}"
    if problem.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"its epilogue has no {str(problem.dtype).removeprefix('torch.')}"
    return None


def _reservation(problem: Problem) -> str | None:
    return "its backward pass computes the first product again" if problem.training else None


BACKEND = Backend(
    name="cublaslt",
    rank=20,
    traceable=True,
    obstacle=_obstacle,
    reservation=_reservation,
    implementations={"channel_mlp": Implementation(_forward, channel_backward)},
)
