"""Operations on a model's layers: read LayerNorm and MLP off the modules, heed autocast, choose, run.

This is all that a Mixer layer knows of backends.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mixerzoo.config import Gelu
from mixerzoo.errors import BackendError
from mixerzoo.ops.backends import BACKENDS
from mixerzoo.ops.choice import AUTO, REFERENCE, Choice, backend_name, choose, with_precision
from mixerzoo.ops.operation import run
from mixerzoo.ops.problem import Branch, Operation, Problem


class Layers(NamedTuple):
    """The modules of one branch.

    Attributes:
        norm: LayerNorm.
        mlp: MLP with layers ``fc1``, ``act`` and ``fc2``.
        drop_path: Stochastic depth.
        mlp_class: The class whose ``forward`` the backends compute; any other is run as it is.
    """

    norm: Any
    mlp: Any
    drop_path: Any
    mlp_class: type


class BackendReport(NamedTuple):
    """Which backend computes each operation of a model, and why a faster one does not; ``print`` it."""

    token_mlp: Choice
    channel_mlp: Choice

    def __str__(self) -> str:
        """Both operations, one line for what runs and one for each backend that does not."""
        return f"{self.token_mlp}\n{self.channel_mlp}"


def explain(op: Operation, layers: Layers, requested: str) -> Choice:
    """What :func:`backend_of` decides, with reasons; raises nothing, but says why a requested backend cannot run.

    Args:
        op: Which branch.
        layers: Its modules.
        requested: ``"auto"``, ``"reference"`` or a backend's name.
    """
    changed = _changed(op, layers)
    if changed is None:
        problem = with_precision(_problem(op, layers))
        obstacle = BACKENDS[requested].obstacle(problem) if requested in BACKENDS else None
        if obstacle is None:
            return choose(problem, requested)
    if requested in (AUTO, REFERENCE):
        return Choice(op, REFERENCE, str(changed), {})
    return Choice(op, "none", f"{requested} was asked for and cannot run: {changed or obstacle}", {})


def summarise(choices: Sequence[Choice]) -> Choice:
    """One choice for all layers of a model; layers that differ from most are named in its reason."""
    usual = Counter(map(str, choices)).most_common(1)[0][0]
    common = next(choice for choice in choices if str(choice) == usual)
    others = [(i, choice) for i, choice in enumerate(choices) if str(choice) != usual]
    if not others:
        return common
    odd = ", ".join(f"{choice.backend} in layer {i} ({choice.reason})" for i, choice in others)
    return Choice(common.op, common.backend, f"{common.reason}; but {odd}", common.passed_over)


def backend_of(op: Operation, x: Tensor, layers: Layers, requested: str) -> str:
    """Name of the backend for this branch, decided from its parameters: dtype, shape, autocast.

    Args:
        op: Which branch.
        x: Its input.
        layers: Its modules.
        requested: ``"auto"``, ``"reference"`` or a backend's name.

    Raises:
        BackendError: The requested backend cannot compute this branch.
    """
    if requested == REFERENCE or _transformed(x) or (requested == AUTO and x.device.type != "cuda"):
        return REFERENCE
    changed = _changed(op, layers)
    if changed and requested != AUTO:
        raise BackendError(f"The backend {requested!r} cannot compute {op} here: {changed}.")
    if changed:
        return REFERENCE
    p = _problem(op, layers)
    return backend_name(op, p.device, p.dtype, (p.tokens, p.channels, p.hidden), p.act, p.training, requested)


def run_layers(op: Operation, x: Tensor, layers: Layers, backend: str) -> Tensor:
    """``x + keep mlp(norm(x))`` by a backend other than the reference; stochastic depth draws as the reference would.

    Args:
        op: Which branch.
        x: Tokens (N, S, C).
        layers: Its modules.
        backend: See :func:`backend_of`.
    """
    norm, mlp, drop_path, _ = layers
    dtype = _products_dtype(mlp)
    w1, b1, w2, b2 = (parameter.to(dtype) for layer in (mlp.fc1, mlp.fc2) for parameter in (layer.weight, layer.bias))
    keep = None
    if drop_path.training and drop_path.drop_prob:
        keep = drop_path(x.new_ones(x.shape[0], 1, 1, dtype=torch.float32)).flatten()
    branch = Branch(x, norm.weight, norm.bias, w1, b1, w2, b2, keep)
    device = x.device.type
    with torch.autocast(device, enabled=False) if _autocasts(device) else contextlib.nullcontext():
        return run(op, branch, norm.eps, _flavour(mlp), backend)


def _transformed(x: Tensor) -> bool:
    """Whether someone records or transforms the computation, and so needs PyTorch's own operations."""
    if isinstance(x, torch.fx.Proxy) or torch.compiler.is_exporting():
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._get_tracing_state() is not None or torch._C._functorch.peek_interpreter_stack() is not None


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _products_dtype(mlp: Any) -> torch.dtype:
    device = mlp.fc1.weight.device.type
    if _autocasts(device):
        return torch.get_autocast_dtype(device)
    dtype: torch.dtype = mlp.fc1.weight.dtype
    return dtype


def _flavour(mlp: Any) -> Gelu:
    return "tanh" if mlp.act.approximate == "tanh" else "erf"


def _problem(op: Operation, layers: Layers) -> Problem:
    hidden, mixed = layers.mlp.fc1.weight.shape
    return Problem(
        op,
        layers.norm.weight.device,
        _products_dtype(layers.mlp),
        mixed if op == "token_mlp" else 0,
        layers.norm.weight.shape[0],
        hidden,
        _flavour(layers.mlp),
        torch.is_grad_enabled(),
    )


def _changed(op: Operation, layers: Layers) -> str | None:
    """Why the modules are no longer those that the backends compute: someone replaced one or watches it."""
    norm, mlp, drop_path, mlp_class = layers
    if not _is_exactly(mlp, mlp_class):
        return f"the MLP was replaced by {type(mlp).__name__}"
    expected = {norm: nn.LayerNorm, mlp.fc1: nn.Linear, mlp.act: nn.GELU, mlp.fc2: nn.Linear, drop_path: DropPath}
    for module, kind in expected.items():
        if not _is_exactly(module, kind):
            return f"a {kind.__name__} was replaced by {type(module).__name__}"
    for module in (mlp, *expected):
        if "forward" in vars(module):
            return f"the forward of {type(module).__name__} was replaced"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"a hook watches {type(module).__name__}"
    if norm.weight is None or norm.bias is None or mlp.fc1.bias is None or mlp.fc2.bias is None:
        return "a scale or a bias was removed"
    return _misfit(op, norm, mlp)


def _is_exactly(module: object, kind: type) -> bool:
    """Whether a module is of a class itself: a subclass may compute something else."""
    return type(module) is kind


def _misfit(op: Operation, norm: nn.LayerNorm, mlp: Any) -> str | None:
    hidden, mixed = mlp.fc1.weight.shape
    fits = mlp.fc2.weight.shape == (mixed, hidden) and len(norm.normalized_shape) == 1
    if op == "channel_mlp":
        fits = fits and norm.normalized_shape[0] == mixed
    return None if fits else "the sizes of its layers do not fit together"
