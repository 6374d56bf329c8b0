"""The best that library products can do: operands aligned, activations never transposed.

Token mixing multiplies from the left, ``W1 (H, S) @ Y (S, C)`` for every image, so that channels stay the contiguous
axis from LayerNorm to the residual. Rows of 196 or 49 elements are no multiple of 16 bytes, and the library's fast
products need that of every operand's rows; W1, the only operand with such rows, is stored by columns for the products
instead (150 KB at Mixer-B/16, copied when it is used).

The backward pass computes LayerNorm's output and GELU again from what little was saved. It is written out in plain
PyTorch: the algebra that the fused kernels follow, checked in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mixerzoo.config import Gelu
from mixerzoo.ops.problem import Backend, Branch, Gradients, Implementation, Problem, Saved


def normalise(branch: Branch, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm in the dtype of the products, with mean and reciprocal standard deviation (N, S)."""
    x, scale, shift = branch.x, branch.norm_weight, branch.norm_bias
    dtype = torch.promote_types(x.dtype, scale.dtype)
    y, mean, rstd = torch.native_layer_norm(x.to(dtype), x.shape[-1:], scale.to(dtype), shift.to(dtype), eps)
    statistics = torch.promote_types(x.dtype, torch.float32)
    return y.to(branch.w1.dtype), mean.squeeze(-1).to(statistics), rstd.squeeze(-1).to(statistics)


def layer_norm_backward(dy: Tensor, g: Tensor, branch: Branch, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradients of LayerNorm's output and of the residual to those of x, scale and shift."""
    dy = dy.to(saved.mean.dtype)
    normalised = (branch.x - saved.mean[..., None]) * saved.rstd[..., None]
    scaled = dy * branch.norm_weight
    along = scaled.mean(-1, keepdim=True)
    across = (scaled * normalised).mean(-1, keepdim=True)
    through = (scaled - along - normalised * across) * saved.rstd[..., None]
    return g + through, (dy * normalised).sum((0, 1)), dy.sum((0, 1))


def gelu(u: Tensor, act: Gelu) -> Tensor:
    """GELU of either flavour."""
    return F.gelu(u, approximate="tanh" if act == "tanh" else "none")


def gelu_backward(dz: Tensor, u: Tensor, act: Gelu) -> Tensor:
    """Gradient of GELU's input."""
    return torch.ops.aten.gelu_backward(dz, u, approximate="tanh" if act == "tanh" else "none")


def _by_columns(w: Tensor) -> Tensor:
    """The same matrix with its columns contiguous."""
    return w.t().contiguous().t()


def _every_image(w: Tensor, images: int) -> Tensor:
    return w.expand(images, *w.shape)


def _scale(branch: Branch, like: Tensor) -> Tensor | None:
    return None if branch.keep is None else branch.keep.to(like.dtype)[:, None, None]


def _add(branch: Branch, mixed: Tensor) -> Tensor:
    """``x + keep mixed`` in the dtype of x."""
    scale = _scale(branch, mixed)
    out = branch.x + (mixed if scale is None else scale * mixed)
    # Converting to the dtype it has makes every gradient zero under torch 2.11's compiler.
    return out if out.dtype == branch.x.dtype else out.to(branch.x.dtype)


def _token_forward(branch: Branch, eps: float, act: Gelu, save: bool) -> tuple[Tensor, Saved]:  # noqa: ARG001
    x, images = branch.x, branch.x.shape[0]
    y, mean, rstd = normalise(branch, eps)
    u = torch.bmm(_every_image(_by_columns(branch.w1), images), y) + branch.b1[:, None]
    z, w2 = gelu(u, act), _every_image(branch.w2, images)
    if branch.keep is None and x.dtype == z.dtype:
        out = torch.baddbmm(x + branch.b2[:, None], w2, z)
    else:
        out = _add(branch, torch.bmm(w2, z) + branch.b2[:, None])
    return out, Saved(mean, rstd, y.new_empty(0))


def _token_backward(g: Tensor, branch: Branch, saved: Saved, eps: float, act: Gelu) -> Gradients:
    images, dtype = branch.x.shape[0], branch.w1.dtype
    scale = _scale(branch, g)
    mixed = (g if scale is None else scale * g).to(dtype)
    y, _, _ = normalise(branch, eps)
    w1 = _by_columns(branch.w1)
    u = torch.bmm(_every_image(w1, images), y) + branch.b1[:, None]
    dz = torch.bmm(_every_image(branch.w2.t(), images), mixed)
    du = gelu_backward(dz, u, act)
    dy = torch.bmm(_every_image(w1.t(), images), du)
    dx, dscale, dshift = layer_norm_backward(dy, g, branch, saved)
    sums = saved.mean.dtype
    return (
        dx,
        dscale,
        dshift,
        torch.bmm(du, y.mT).sum(0, dtype=sums),
        du.sum((0, 2), dtype=sums),
        torch.bmm(mixed, gelu(u, act).mT).sum(0, dtype=sums),
        mixed.sum((0, 2), dtype=sums),
    )


def channel_forward(branch: Branch, eps: float, act: Gelu, save: bool) -> tuple[Tensor, Saved]:
    """Channel mixing with GELU on its own; what it is applied to is saved."""
    y, mean, rstd = normalise(branch, eps)
    u = F.linear(y, branch.w1, branch.b1)
    return channel_residual(branch, gelu(u, act)), Saved(mean, rstd, u if save else y.new_empty(0))


def channel_residual(branch: Branch, z: Tensor) -> Tensor:
    """``x + keep (z W2^T + b2)`` for hidden activations z (N, S, H)."""
    x = branch.x
    if branch.keep is None and x.dtype == z.dtype:
        flat = (x + branch.b2).flatten(0, 1)
        return torch.addmm(flat, z.flatten(0, 1), branch.w2.t()).view_as(x)
    return _add(branch, F.linear(z, branch.w2, branch.b2))


def channel_backward(g: Tensor, branch: Branch, saved: Saved, eps: float, act: Gelu) -> Gradients:
    """Backward of channel mixing; computes what GELU is applied to again where it was not saved."""
    scale = _scale(branch, g)
    mixed = (g if scale is None else scale * g).to(branch.w1.dtype)
    y, _, _ = normalise(branch, eps)
    u = saved.hidden if saved.hidden.numel() else F.linear(y, branch.w1, branch.b1)
    du = gelu_backward(mixed @ branch.w2, u, act)
    dx, dscale, dshift = layer_norm_backward(du @ branch.w1, g, branch, saved)
    sums = saved.mean.dtype
    return (
        dx,
        dscale,
        dshift,
        du.flatten(0, 1).t() @ y.flatten(0, 1),
        du.sum((0, 1), dtype=sums),
        mixed.flatten(0, 1).t() @ gelu(u, act).flatten(0, 1),
        mixed.sum((0, 1), dtype=sums),
    )


def _obstacle(problem: Problem) -> str | None:
    if not problem.dtype.is_floating_point:
        return f"{problem.dtype} is no floating-point type"
    return None


def _reservation(problem: Problem) -> str | None:
    return None if problem.device.type == "cuda" else "it was made for GPUs; on the CPU the plain layers run"


BACKEND = Backend(
    name="unfused",
    rank=30,
    traceable=True,
    obstacle=_obstacle,
    reservation=_reservation,
    implementations={
        "token_mlp": Implementation(_token_forward, _token_backward),
        "channel_mlp": Implementation(channel_forward, channel_backward, saves_hidden=True),
    },
)
