"""Matrix products with what follows them in the epilogue: GELU, the residual, or GELU's derivative.

Legend: M rows (images x tokens), K contracted width, F output features, S tokens of an image.

    GELU       u = a w^T + b,  out = gelu(u)              and u itself where the backward pass will want it
               u = rstd (a w^T - mean total) + b          where a is to be normalised first: total is w's row sums
    RESIDUAL   out = residual + keep (a w^T + b)          keep is one factor for each image
    GRADIENT   du = keep (a w) gelu'(u),  z = keep gelu(u)      and the column sums of du, one slot a row block

FP8 operands have scales: GELU and RESIDUAL take scale a w^T for a w^T, with a scale for each feature, and GELU writes
factor gelu(u). Their sums stay in the matrix units, although Hopper's keep about 14 bits of a running FP8 sum: that
costs 1e-3 with 3,072 products and 2e-3 with 5,120 (emulated), beside 4e-2 from rounding the operands. Adding every few
steps in float32 instead (``max_num_imprecise_acc``) would take a second set of accumulators, and with it the wide tile.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mixerzoo.kernels.arithmetic import cast, dot, gelu, gelu_gradient
from mixerzoo.kernels.launch import Launch, dot_precision
from mixerzoo.kernels.linear_tiles import LinearTile

_GELU, _RESIDUAL, _GRADIENT = 0, 1, 2


@triton.jit
def block_of(program, blocks_m, BLOCKS_F: tl.constexpr, GROUP: tl.constexpr):
    """Row and feature block of a program: those that run together share operands.

    GROUP row blocks go through all features before the next ones.
    """
    group = program // (GROUP * BLOCKS_F)
    height = tl.minimum(blocks_m - group * GROUP, GROUP)
    within = program % (GROUP * BLOCKS_F)
    return group * GROUP + within % height, within // height


@triton.jit
def _add_residual(
    residual,  # (M, F)
    out,  # (M, F), written
    branch,  # (BM, columns) float32
    kept,  # (BM,) float32
    exists,  # (BM,)
    above,
    r,  # (BM,)
    f,  # (columns,)
    F: tl.constexpr,
):
    at = above * F + r[:, None] * F + f[None, :]
    inside = exists[:, None] & (f < F)[None, :]
    passed = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, cast(passed + kept[:, None] * branch, out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])  # one compilation whatever the batch size
def _linear(
    a,  # (M, K)
    w,  # (F, K), or (K, F) for GRADIENT
    b,  # (F,), not for GRADIENT
    mean,  # (M,) float32 or None, for GELU
    rstd,  # (M,) float32 or None, for GELU
    total,  # (F,) float32 or None, for GELU
    scale,  # (F,) float32 or None, not for GRADIENT
    factor,  # (F,) float32 or None, for GELU
    u,  # (M, F): written for GELU unless None, read for GRADIENT
    residual,  # (M, F), for RESIDUAL
    keep,  # (M / S,) float32 or None, not for GELU
    out,  # (M, F), written: du for GRADIENT
    z,  # (M, F), written for GRADIENT
    sums,  # (row blocks, F) float32, written for GRADIENT
    M,
    EPILOGUE: tl.constexpr,  # 0 GELU, 1 RESIDUAL, 2 GRADIENT
    S: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    BM: tl.constexpr,
    BF: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    TANH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block_m, block_f = block_of(tl.program_id(0), tl.cdiv(M, BM), (F + BF - 1) // BF, GROUP)
    above = tl.cast(block_m, tl.int64) * BM  # 64 bits for the block's origin, 32 within it
    r = tl.arange(0, BM)
    rows = tl.minimum(r, M - 1 - block_m * BM)  # beyond the last row: read that one again, write nothing
    f = block_f * BF + tl.arange(0, BF)
    features = f % F
    acc = tl.zeros((BM, BF), tl.float32)
    for first in tl.range(0, K, BK, num_stages=STAGES):
        k = first + tl.arange(0, BK)
        left = a + above * K + rows[:, None] * K + k[None, :]
        right = w + k[:, None] * F + features[None, :] if EPILOGUE == 2 else w + k[:, None] + features[None, :] * K
        if K % BK == 0:
            acc = dot(tl.load(left), tl.load(right), acc, PRECISION)
        else:
            left_tile = tl.load(left, mask=(k < K)[None, :], other=0.0)
            acc = dot(left_tile, tl.load(right, mask=(k < K)[:, None], other=0.0), acc, PRECISION)
    at = r[:, None] * F + f[None, :]
    exists = block_m * BM + r < M
    inside = exists[:, None] & (f < F)[None, :]
    kept = tl.full((BM,), 1.0, tl.float32)
    if keep is not None:
        kept = tl.load(keep + (block_m * BM + r) // S, mask=exists, other=0.0)
    if scale is not None:
        acc *= tl.load(scale + features)[None, :]
    if EPILOGUE == 0:
        if mean is not None:
            inverse = tl.load(rstd + block_m * BM + rows)
            shift = -tl.load(mean + block_m * BM + rows) * inverse
            acc = acc * inverse[:, None] + shift[:, None] * tl.load(total + features)[None, :]
        acc += tl.load(b + features).to(tl.float32)[None, :]
        if u is not None:
            tl.store(u + above * F + at, cast(acc, u.dtype.element_ty), mask=inside)
        hidden = gelu(acc, TANH)
        if factor is not None:
            hidden *= tl.load(factor + features)[None, :]
        tl.store(out + above * F + at, cast(hidden, out.dtype.element_ty), mask=inside)
    elif EPILOGUE == 1:
        acc += tl.load(b + features).to(tl.float32)[None, :]
        if BF < 256:
            _add_residual(residual, out, acc, kept, exists, above, r, f, F)
        else:  # in two halves: registers for one of the residual's is all there is
            half = block_f * BF + tl.arange(0, BF // 2)
            left_half, right_half = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BF // 2)), (0, 2, 1)))
            _add_residual(residual, out, left_half, kept, exists, above, r, half, F)
            _add_residual(residual, out, right_half, kept, exists, above, r, half + BF // 2, F)
    else:
        before = tl.load(u + above * F + at, mask=inside, other=0.0).to(tl.float32)
        du = tl.where(exists[:, None], kept[:, None] * acc * gelu_gradient(before, TANH), 0.0)
        tl.store(out + above * F + at, cast(du, out.dtype.element_ty), mask=inside)
        tl.store(z + above * F + at, cast(kept[:, None] * gelu(before, TANH), z.dtype.element_ty), mask=inside)
        tl.store(sums + block_m * F + f, tl.sum(du, axis=0), mask=f < F)


def describe_linear_gelu(
    a: Tensor, w: Tensor, b: Tensor, u: Tensor | None, out: Tensor, act: str, tile: LinearTile
) -> Launch:
    """``out = gelu(a w^T + b)``; ``u`` receives what GELU is applied to.

    Args:
        a: (M, K), contiguous.
        w: (F, K), contiguous, in the dtype of ``a``.
        b: (F,).
        u: (M, F), written; None to keep nothing.
        out: (M, F), written.
        act: GELU flavour.
        tile: How the product is cut.
    """
    return _describe({"a": a, "w": w, "b": b, "u": u, "out": out}, _GELU, 1, act, tile)


def describe_normalised_gelu(
    a: Tensor,
    stats: tuple[Tensor, Tensor],
    w: Tensor,
    total: Tensor,
    b: Tensor,
    out: Tensor,
    act: str,
    tile: LinearTile,
) -> Launch:
    """``out = gelu(normalised(a) w^T + b)`` from rows that are not normalised.

    Their means drop out of the sums in float32, so this suits 2-byte operands, whose own rounding is far coarser; in
    float32, and more so in TF32, what cancels would show.

    Args:
        a: (M, K), contiguous.
        stats: Mean and reciprocal standard deviation of its rows (M,), float32.
        w: (F, K), contiguous, in the dtype of ``a``.
        total: Row sums of ``w`` as it is, rounded (F,), float32.
        b: (F,).
        out: (M, F), written.
        act: GELU flavour.
        tile: How the product is cut.
    """
    normalisation = {"mean": stats[0], "rstd": stats[1], "total": total}
    return _describe({"a": a, "w": w, "b": b, "out": out} | normalisation, _GELU, 1, act, tile)


def describe_fp8_gelu(
    a: Tensor, w: Tensor, scale: Tensor, b: Tensor, factor: Tensor, out: Tensor, act: str, tile: LinearTile
) -> Launch:
    """``out = factor gelu(scale a w^T + b)``.

    Args:
        a: (M, K), FP8, contiguous.
        w: (F, K), FP8, contiguous.
        scale: (F,), float32.
        b: (F,).
        factor: (F,), float32.
        out: (M, F), FP8, written.
        act: GELU flavour.
        tile: How the product is cut.
    """
    tensors = {"a": a, "w": w, "scale": scale, "b": b, "factor": factor, "out": out}
    return _describe(tensors, _GELU, 1, act, tile)


def describe_linear_residual(
    a: Tensor,
    w: Tensor,
    b: Tensor,
    residual: Tensor,
    keep: Tensor | None,
    out: Tensor,
    tile: LinearTile,
    scale: Tensor | None = None,
) -> Launch:
    """``out = residual + keep (a w^T + b)``, or ``scale a w^T`` in place of ``a w^T``.

    Args:
        a: (M, K), contiguous.
        w: (F, K), contiguous, in the dtype of ``a``.
        b: (F,).
        residual: (N, S, F), contiguous, N S = M.
        keep: (N,), float32; None for 1.
        out: As ``residual``, written; it may be ``residual``, of which a program reads no more than it writes.
        tile: How the product is cut.
        scale: (F,), float32, for FP8 operands.
    """
    arguments = {"a": a, "w": w, "b": b, "residual": residual, "keep": keep, "out": out, "scale": scale}
    return _describe(arguments, _RESIDUAL, residual.shape[-2], "tanh", tile)


def describe_linear_gradient(
    g: Tensor,
    w: Tensor,
    u: Tensor,
    keep: Tensor | None,
    du: Tensor,
    z: Tensor,
    sums: Tensor,
    act: str,
    tile: LinearTile,
) -> Launch:
    """``du = keep (g w) gelu'(u)`` and ``z = keep gelu(u)``.

    Args:
        g: (N, S, K), contiguous, N S = M.
        w: (K, F), contiguous, in the dtype of ``g``.
        u: (M, F).
        keep: (N,), float32; None for 1.
        du: (M, F), written.
        z: (M, F), written.
        sums: (row blocks, F) float32, written: column sums of ``du``.
        act: GELU flavour.
        tile: How the product is cut.
    """
    arguments = {"a": g, "w": w, "u": u, "keep": keep, "out": du, "z": z, "sums": sums}
    return _describe(arguments, _GRADIENT, g.shape[-2], act, tile)


def _describe(tensors: dict[str, Any], epilogue: int, tokens: int, act: str, tile: LinearTile) -> Launch:
    a, features = tensors["a"], tensors["out"].shape[-1]
    width = a.shape[-1]
    rows = a.numel() // width
    unused = dict.fromkeys(("b", "mean", "rstd", "total", "scale", "factor", "u", "residual", "keep", "z", "sums"))
    return Launch(
        _linear,
        (triton.cdiv(rows, tile.rows) * triton.cdiv(features, tile.features),),
        unused | tensors | {"M": rows},
        {"EPILOGUE": epilogue, "S": tokens, "F": features, "K": width}
        | {"BM": tile.rows, "BF": tile.features, "BK": tile.depth, "GROUP": 8, "STAGES": tile.stages}
        | {"TANH": act == "tanh", "PRECISION": dot_precision(a.dtype)},
        num_warps=tile.warps,
    )
