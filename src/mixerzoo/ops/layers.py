"""Operations on a model's layers: read LayerNorm and MLP off the modules, heed autocast, choose, run.

This is all that a Mixer layer knows of backends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo.config import Gelu
from mixerzoo.errors import BackendError
from mixerzoo.ops.backends import BACKENDS
from mixerzoo.ops.choice import AUTO, REFERENCE, Choice, backend_name, choose, with_precision
from mixerzoo.ops.operation import run
from mixerzoo.ops.problem import Branch, Operation, Problem


class BackendReport(NamedTuple):
    """Which backend computes each operation of a model, and why a faster one does not; ``print`` it."""

    token_mlp: Choice
    channel_mlp: Choice

    def __str__(self) -> str:
        """Both operations, one line for what runs and one for each backend that does not."""
        return f"{self.token_mlp}\n{self.channel_mlp}"


def explain(op: Operation, norm: nn.Module, mlp: Any, requested: str) -> Choice:
    """What :func:`backend_of` decides, with reasons; raises nothing, but says why a requested backend cannot run.

    Args:
        op: Which branch.
        norm: Its LayerNorm.
        mlp: Its MLP, with layers ``fc1``, ``act`` and ``fc2``.
        requested: ``"auto"``, ``"reference"`` or a backend's name.
    """
    changed = _changed(norm, mlp)
    if changed:
        return Choice(op, REFERENCE, changed, {})
    problem = with_precision(_problem(op, norm, mlp))
    if requested in BACKENDS and (obstacle := BACKENDS[requested].obstacle(problem)):
        return Choice(op, "none", f"{requested} was asked for and cannot run: {obstacle}", {})
    return choose(problem, requested)


def backend_of(op: Operation, x: Tensor, norm: nn.Module, mlp: Any, requested: str) -> str:
    """Name of the backend for this branch, decided from its parameters: device, dtype, shape, autocast.

    Args:
        op: Which branch.
        x: Its input.
        norm: Its LayerNorm.
        mlp: Its MLP, with layers ``fc1``, ``act`` and ``fc2``.
        requested: ``"auto"``, ``"reference"`` or a backend's name.

    Raises:
        BackendError: The requested backend cannot compute this branch.
    """
    if isinstance(x, torch.fx.Proxy) or torch.compiler.is_exporting():  # graphs that leave here hold PyTorch's own ops
        return REFERENCE
    if requested == REFERENCE or (requested == AUTO and norm.weight.device.type != "cuda"):
        return REFERENCE
    changed = _changed(norm, mlp)
    if changed and requested != AUTO:
        raise BackendError(f"The backend {requested!r} cannot compute {op} here: {changed}.")
    if changed:
        return REFERENCE
    p = _problem(op, norm, mlp)
    sizes = (p.tokens, p.channels, p.hidden)
    return backend_name(op, p.device, p.dtype, sizes, p.act, p.training, requested)


def run_layers(op: Operation, x: Tensor, norm: Any, mlp: Any, keep: Tensor | None, backend: str) -> Tensor:
    """``x + keep mlp(norm(x))`` by a backend other than the reference.

    Args:
        op: Which branch.
        x: Tokens (N, S, C).
        norm: Its LayerNorm.
        mlp: Its MLP, with layers ``fc1`` and ``fc2``.
        keep: Stochastic depth: (N,), or None for 1.
        backend: See :func:`backend_of`.
    """
    dtype = _products_dtype(mlp)
    w1, b1, w2, b2 = (parameter.to(dtype) for layer in (mlp.fc1, mlp.fc2) for parameter in (layer.weight, layer.bias))
    branch = Branch(x, norm.weight, norm.bias, w1, b1, w2, b2, keep)
    with torch.autocast(x.device.type, enabled=False):
        return run(op, branch, norm.eps, _flavour(mlp), backend)


def _products_dtype(mlp: Any) -> torch.dtype:
    device = mlp.fc1.weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else mlp.fc1.weight.dtype


def _flavour(mlp: Any) -> Gelu:
    return "tanh" if mlp.act.approximate == "tanh" else "erf"


def _problem(op: Operation, norm: Any, mlp: Any) -> Problem:
    hidden, mixed = mlp.fc1.weight.shape
    channels = norm.weight.shape[0]
    return Problem(
        op,
        norm.weight.device,
        _products_dtype(mlp),
        mixed if op == "token_mlp" else 0,
        channels,
        hidden,
        _flavour(mlp),
        torch.is_grad_enabled(),
    )


def _changed(norm: Any, mlp: Any) -> str | None:
    """Why the layers are no longer those that the backends compute: someone replaced one or watches it."""
    for layer, kind in ((norm, nn.LayerNorm), (mlp.fc1, nn.Linear), (mlp.act, nn.GELU), (mlp.fc2, nn.Linear)):
        if type(layer) is not kind:
            return f"a {kind.__name__} was replaced by {type(layer).__name__}"
    for layer in (norm, mlp, mlp.fc1, mlp.act, mlp.fc2):
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            return f"a hook watches {type(layer).__name__}"
    if norm.weight is None or norm.bias is None or mlp.fc1.bias is None or mlp.fc2.bias is None:
        return "a scale or a bias was removed"
    return None
