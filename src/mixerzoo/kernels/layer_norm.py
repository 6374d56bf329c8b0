"""LayerNorm over channels: row statistics, normalised rows, and the gradient with its residual.

Legend: R rows (images x tokens), C channels, CP the next power of two of C. A program owns whole rows, so sums over
channels need no second pass; sums over rows (the gradients of scale and shift) leave one slot a program and are added
in a fixed order afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixerzoo.kernels.arithmetic import cast
from mixerzoo.kernels.launch import Launch, card_of

_ROWS = 4  # rows a program reads at once: enough loads in flight, few enough registers


@triton.jit(do_not_specialize=["R"])  # one compilation whatever the batch size
def _layer_norm(
    x,  # (R, C)
    less,  # (C,); None for 0
    weight,  # (C,); None for 1
    bias,  # (C,); None for 0
    y,  # (R, C), written; None for the statistics alone
    mean,  # (R,) float32, written
    rstd,  # (R,) float32, written
    R,
    eps,
    FACTOR: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    ROWS: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CP)
    inside = (r < R)[:, None] & (c < C)[None, :]
    v = tl.load(x + r[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
    if less is not None:
        v -= tl.load(less + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    m = tl.sum(v, axis=1) / C
    centred = tl.where((c < C)[None, :], v - m[:, None], 0.0)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, axis=1) / C + eps)
    tl.store(mean + r, m, mask=r < R)
    tl.store(rstd + r, inverse, mask=r < R)
    if y is not None:
        normalised = centred * (FACTOR * inverse)[:, None]
        if weight is not None:
            scale = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
            shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
            normalised = normalised * scale[None, :] + shift[None, :]
        tl.store(y + r[:, None] * C + c[None, :], cast(normalised, y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["R"])  # one compilation whatever the batch size
def _layer_norm_gradient(
    dy,  # (R, C), gradient of the normalised rows
    residual,  # (R, C), gradient that passed the branch by
    x,  # (R, C)
    mean,  # (R,) float32
    rstd,  # (R,) float32
    weight,  # (C,)
    dx,  # (R, C), written
    dweight,  # (programs, C) float32, written
    dbias,  # (programs, C) float32, written
    R,
    C: tl.constexpr,
    CP: tl.constexpr,
    ROWS: tl.constexpr,
):
    c = tl.arange(0, CP)
    scale = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    sum_weight = tl.zeros((CP,), tl.float32)
    sum_bias = tl.zeros((CP,), tl.float32)
    for first in tl.range(tl.program_id(0) * ROWS, R, tl.num_programs(0) * ROWS):
        r = (first + tl.arange(0, ROWS)).to(tl.int64)
        inside = (r < R)[:, None] & (c < C)[None, :]
        at = r[:, None] * C + c[None, :]
        m = tl.load(mean + r, mask=r < R, other=0.0)
        inverse = tl.load(rstd + r, mask=r < R, other=0.0)
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        normalised = tl.where(inside, (v - m[:, None]) * inverse[:, None], 0.0)
        scaled = g * scale[None, :]
        along = tl.sum(scaled, axis=1) / C
        across = tl.sum(scaled * normalised, axis=1) / C
        through = (scaled - along[:, None] - normalised * across[:, None]) * inverse[:, None]
        passed = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, cast(passed + through, dx.dtype.element_ty), mask=inside)
        sum_weight += tl.sum(g * normalised, axis=0)
        sum_bias += tl.sum(g, axis=0)
    slot = tl.program_id(0) * C + c
    tl.store(dweight + slot, sum_weight, mask=c < C)
    tl.store(dbias + slot, sum_bias, mask=c < C)


def _warps(channels: int) -> int:
    return 4 if channels <= 1024 else 8


def describe_layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    y: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    factor: float = 1.0,
    less: Tensor | None = None,
) -> Launch:
    """Statistics of every row of ``x`` (R, C), and the normalised rows if ``y`` is given.

    Scale and shift may both be None: then rows are only centred and brought to a deviation of ``factor``. ``less`` (C,)
    is subtracted from every row first.
    """
    rows, channels = mean.numel(), x.shape[-1]
    return Launch(
        _layer_norm,
        (triton.cdiv(rows, _ROWS),),
        {"x": x, "less": less, "weight": weight, "bias": bias, "y": y, "mean": mean, "rstd": rstd}
        | {"R": rows, "eps": eps},
        {"FACTOR": factor, "C": channels, "CP": triton.next_power_of_2(channels), "ROWS": _ROWS},
        num_warps=_warps(channels),
    )


def row_stats(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation over the last axis of contiguous ``x``, float32."""
    mean = torch.empty(x.shape[:-1], device=x.device, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    describe_layer_norm(x, weight, bias, None, mean, rstd, eps)()
    return mean, rstd


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of contiguous ``x`` over its last axis in ``dtype``, with the statistics of :func:`row_stats`."""
    mean = torch.empty(x.shape[:-1], device=x.device, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    y = torch.empty_like(x, dtype=dtype)
    describe_layer_norm(x, weight, bias, y, mean, rstd, eps)()
    return y, mean, rstd


def describe_layer_norm_backward(
    dy: Tensor,
    residual: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
) -> Launch:
    """``dx`` and one row of ``dweight`` and ``dbias`` a program; all as in :func:`layer_norm_backward`."""
    channels = x.shape[-1]
    tensors = {"dy": dy, "residual": residual, "x": x, "mean": mean, "rstd": rstd, "weight": weight}
    return Launch(
        _layer_norm_gradient,
        (dweight.shape[0],),
        tensors | {"dx": dx, "dweight": dweight, "dbias": dbias, "R": mean.numel()},
        {"C": channels, "CP": triton.next_power_of_2(channels), "ROWS": _ROWS},
        num_warps=_warps(channels),
    )


def layer_norm_backward(
    dy: Tensor, residual: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of a pre-norm residual branch's input.

    Args:
        dy: Gradient of the normalised rows, as ``x``.
        residual: Gradient of the branch's output, which also passes it by.
        x: Rows (..., C).
        mean: Their means.
        rstd: Their reciprocal standard deviations.
        weight: LayerNorm's scale (C,).

    Returns:
        The gradients of ``x`` (in its dtype), of the scale and of the shift (float32).
    """
    rows, channels = mean.numel(), x.shape[-1]
    programs = min(max(triton.cdiv(rows, _ROWS), 1), 4 * card_of(x.device).multiprocessors)
    dx = torch.empty_like(x)
    partial = torch.empty(2, programs, channels, device=x.device, dtype=torch.float32)
    describe_layer_norm_backward(dy, residual, x, mean, rstd, weight, dx, partial[0], partial[1])()
    return dx, partial[0].sum(0), partial[1].sum(0)
