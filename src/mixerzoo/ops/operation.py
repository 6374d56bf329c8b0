"""From an implementation (tensors in, tensors out) to an operation that autograd and ``torch.compile`` understand.

Two ways lead there, and both call the same ``forward`` and ``backward``. A traceable backend is wrapped by
``autograd.Function``: the compiler sees its products and fuses around them. Any other is a registered operation, opaque
to the compiler, with a fake implementation for shapes and a second registered operation for its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixerzoo.config import Gelu
from mixerzoo.errors import BackendError
from mixerzoo.ops.backends import BACKENDS
from mixerzoo.ops.problem import OPERATIONS, Branch, Operation, Saved

_BRANCH = "Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? keep"
_FORWARD = f"({_BRANCH}, float eps, str act, str backend, bool save) -> (Tensor, Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor g, {_BRANCH}, Tensor mean, Tensor rstd, Tensor hidden, float eps, str act, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def run(op: Operation, branch: Branch, eps: float, act: Gelu, backend: str) -> Tensor:
    """``x + keep branch(x)`` by the named backend, differentiable once.

    Args:
        op: Which branch.
        branch: Its tensors, of any strides.
        eps: LayerNorm's.
        act: GELU flavour.
        backend: A backend that can (see :func:`mixerzoo.ops.choice.choose`).

    Returns:
        A tensor of the shape and dtype of ``x``.
    """
    branch = _dense(branch)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in branch[:7])
    if BACKENDS[backend].traceable:
        out: Tensor = _Traceable.apply(op, eps, act, backend, save, *branch)
        return out
    return getattr(torch.ops.mixerzoo, op)(*branch, eps, act, backend, save)[0]


def _dense(branch: Branch) -> Branch:
    """The branch with contiguous tensors, which is how kernels address them."""
    return Branch(*(None if tensor is None else tensor.contiguous() for tensor in branch))  # type: ignore[arg-type]


def _check(op: Operation, branch: Branch) -> None:
    """Refuse tensors whose shapes do not belong together: a kernel would read beside them."""
    tokens, channels = branch.x.shape[1:]
    mixed, hidden = tokens if op == "token_mlp" else channels, branch.w1.shape[0]
    expected = [(channels,), (channels,), (hidden, mixed), (hidden,), (mixed, hidden), (mixed,)]
    wrong = [
        f"{name} {tuple(tensor.shape)} instead of {shape}"
        for name, tensor, shape in zip(Branch._fields[1:7], branch[1:7], expected, strict=True)
        if tensor.shape != shape
    ]
    if wrong:
        raise BackendError(f"{op} of x {tuple(branch.x.shape)} cannot use {', '.join(wrong)}.")


def _gradients(
    op: Operation, g: Tensor, branch: Branch, saved: Saved, eps: float, act: Gelu, backend: str
) -> tuple[Tensor, ...]:
    """Gradients in the dtypes of what they belong to, contiguous."""
    found = BACKENDS[backend].implementations[op].backward(g.contiguous(), branch, saved, eps, act)
    return tuple(grad.to(tensor.dtype).contiguous() for grad, tensor in zip(found, branch[:7], strict=True))


class _Traceable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: Operation, eps: float, act: Gelu, backend: str, save: bool, *tensors: Tensor | None
    ) -> Tensor:
        branch = Branch(*tensors)  # type: ignore[arg-type]
        out, saved = BACKENDS[backend].implementations[op].forward(branch, eps, act, save)
        ctx.save_for_backward(*tensors, *saved)
        ctx.chosen = op, eps, act, backend
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        op, eps, act, backend = ctx.chosen
        tensors = ctx.saved_tensors  # once: gradient checkpointing computes them for one asking only
        branch, saved = Branch(*tensors[:8]), Saved(*tensors[8:])
        return None, None, None, None, None, *_gradients(op, g, branch, saved, eps, act, backend), None


def _register(op: Operation) -> None:
    """Define ``torch.ops.mixerzoo.<op>`` and ``<op>_backward`` with fakes and autograd."""

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, eps, act, backend, save = arguments
        branch = _dense(Branch(*tensors))
        _check(op, branch)
        out, saved = BACKENDS[backend].implementations[op].forward(branch, eps, act, save)
        return out, *saved

    def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, _, _, backend, save = arguments
        branch = Branch(*tensors)
        x, hidden = branch.x, branch.w1.shape[0]
        stats = x.new_empty(x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32))
        kept = save and BACKENDS[backend].implementations[op].saves_hidden
        shape = (*x.shape[:-1], hidden) if kept else (0,)
        return torch.empty_like(x), stats, torch.empty_like(stats), branch.w1.new_empty(shape)

    def backward(g: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, mean, rstd, hidden, eps, act, backend = arguments
        return _gradients(op, g, _dense(Branch(*tensors)), Saved(mean, rstd, hidden), eps, act, backend)

    def fake_backward(g: Tensor, *arguments: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
        return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in arguments[:7])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.chosen, ctx.saves = inputs[8:11], inputs[11]
        ctx.save_for_backward(*inputs[:8], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    def autograd(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.saves:
            raise BackendError(f"{op} was computed with save=False, which leaves no way back: ask for save=True.")
        gradient = getattr(torch.ops.mixerzoo, f"{op}_backward")
        return *gradient(g, *ctx.saved_tensors, *ctx.chosen), None, None, None, None, None

    registered = torch.library.custom_op(f"mixerzoo::{op}", forward, mutates_args=(), schema=_FORWARD)
    registered.register_fake(fake_forward)
    registered.register_autograd(autograd, setup_context=setup_context)
    torch.library.custom_op(f"mixerzoo::{op}_backward", backward, mutates_args=(), schema=_BACKWARD).register_fake(
        fake_backward
    )


for _op in OPERATIONS:
    _register(_op)
