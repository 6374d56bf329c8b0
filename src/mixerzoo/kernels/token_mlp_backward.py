"""Backward of fused token mixing: nothing but x and its row statistics was saved, everything else is computed again.

Legend as in :mod:`mixerzoo.kernels.token_mlp`; G is the gradient of the branch's output (keep times the incoming one).
Two kernels, each owning what it accumulates, so that no atomics are needed and sums have a fixed order:

    _token_input    a block of channels of one image, all tokens; over the hidden width:
                    U = W1 Y + b1,  dU = (W2^T G) gelu'(U),  dY += W1^T dU
    _token_weights  a chunk of the hidden width, all tokens, a share of the (image, channel block) pairs; over those:
                    dW1 += dU Y^T with db1 += sum dU, and in another launch  dW2^T += gelu(U) G^T

LayerNorm's own backward follows in :func:`mixerzoo.kernels.layer_norm.layer_norm_backward`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mixerzoo.kernels.arithmetic import cast, dot, gelu, gelu_gradient
from mixerzoo.kernels.launch import Launch, dot_precision
from mixerzoo.kernels.token_mlp import load_normalised
from mixerzoo.kernels.token_tiles import Tile, token_parts


@triton.jit
def _load_gradient(
    g,  # (N, S, C)
    n,
    c,  # (BC,)
    origin,
    S: tl.constexpr,
    C: tl.constexpr,
    START: tl.constexpr,
    PART: tl.constexpr,
    DTYPE: tl.constexpr,
):
    s = origin + START + tl.arange(0, PART)
    inside = (s < S)[:, None] & (c < C)[None, :]
    v = tl.load(g + tl.cast(n, tl.int64) * S * C + s[:, None] * C + c[None, :], mask=inside, other=0.0)
    if v.dtype == DTYPE:
        return v
    return cast(v.to(tl.float32), DTYPE)


@triton.jit(do_not_specialize=["N"])  # one compilation whatever the batch size
def _token_input(
    x,  # (N, S, C)
    mean,  # (N, S) float32
    rstd,  # (N, S) float32
    weight,  # (C,)
    bias,  # (C,)
    g,  # (N, S, C)
    keep,  # (N,) float32 or None
    w1,  # (HP, SP), zeros beyond (H, S)
    b1,  # (HP,)
    w2,  # (SP, HP), zeros beyond (S, H)
    dy,  # (N, S, C), written
    db2,  # (N * BLOCKS, SP) float32, written
    N,
    S: tl.constexpr,
    C: tl.constexpr,
    HP: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    BC: tl.constexpr,
    BH: tl.constexpr,
    STAGES: tl.constexpr,
    TANH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SP: tl.constexpr = P0 + P1 + P2
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    DTYPE: tl.constexpr = w1.dtype.element_ty
    tiles = N * BLOCKS
    tile = tl.program_id(0)
    n = tile // BLOCKS
    c = (tile % BLOCKS) * BC + tl.arange(0, BC)
    origin = tile >> 30
    y0 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, 0, P0, DTYPE)
    if P1 > 0:
        y1 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0, P1, DTYPE)
    if P2 > 0:
        y2 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0 + P1, P2, DTYPE)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        n = tile // BLOCKS
        c = (tile % BLOCKS) * BC + tl.arange(0, BC)
        origin = tile >> 30
        s0 = tl.arange(0, P0)
        s1 = P0 + tl.arange(0, P1 if P1 > 0 else 1)
        s2 = P0 + P1 + tl.arange(0, P2 if P2 > 0 else 1)
        kept = 1.0
        if keep is not None:
            kept = tl.load(keep + n)
        g0 = _load_gradient(g, n, c, origin, S, C, 0, P0, DTYPE)
        y0_t, g0_t = tl.trans(y0), tl.trans(g0)
        d0 = tl.zeros((BC, P0), tl.float32)
        tl.store(db2 + tile * SP + origin + s0, kept * tl.sum(g0.to(tl.float32), axis=1))
        if P1 > 0:
            g1 = _load_gradient(g, n, c, origin, S, C, P0, P1, DTYPE)
            y1_t, g1_t = tl.trans(y1), tl.trans(g1)
            d1 = tl.zeros((BC, P1), tl.float32)
            tl.store(db2 + tile * SP + origin + s1, kept * tl.sum(g1.to(tl.float32), axis=1))
        if P2 > 0:
            g2 = _load_gradient(g, n, c, origin, S, C, P0 + P1, P2, DTYPE)
            y2_t, g2_t = tl.trans(y2), tl.trans(g2)
            d2 = tl.zeros((BC, P2), tl.float32)
            tl.store(db2 + tile * SP + origin + s2, kept * tl.sum(g2.to(tl.float32), axis=1))
        for first in tl.range(0, HP, BH, num_stages=STAGES):
            h = tl.multiple_of(origin, 16) + first + tl.arange(0, BH)
            zero = tl.zeros((BC, BH), tl.float32)
            w1_0 = tl.load(w1 + h[:, None] * SP + s0[None, :])
            u = dot(y0_t, tl.trans(w1_0), zero, PRECISION)
            dz = dot(g0_t, tl.load(w2 + s0[:, None] * HP + h[None, :]), zero, PRECISION)
            if P1 > 0:
                w1_1 = tl.load(w1 + h[:, None] * SP + s1[None, :])
                u = dot(y1_t, tl.trans(w1_1), u, PRECISION)
                dz = dot(g1_t, tl.load(w2 + s1[:, None] * HP + h[None, :]), dz, PRECISION)
            if P2 > 0:
                w1_2 = tl.load(w1 + h[:, None] * SP + s2[None, :])
                u = dot(y2_t, tl.trans(w1_2), u, PRECISION)
                dz = dot(g2_t, tl.load(w2 + s2[:, None] * HP + h[None, :]), dz, PRECISION)
            u += tl.load(b1 + h).to(tl.float32)[None, :]
            du = cast(kept * dz * gelu_gradient(u, TANH), DTYPE)
            d0 = dot(du, w1_0, d0, PRECISION)
            if P1 > 0:
                d1 = dot(du, w1_1, d1, PRECISION)
            if P2 > 0:
                d2 = dot(du, w1_2, d2, PRECISION)
        _store_gradient(dy, d0, n, c, origin, S, C, 0, P0)
        if P1 > 0:
            _store_gradient(dy, d1, n, c, origin, S, C, P0, P1)
        if P2 > 0:
            _store_gradient(dy, d2, n, c, origin, S, C, P0 + P1, P2)
        following = tl.minimum(tile + tl.num_programs(0), tiles - 1)
        n = following // BLOCKS
        c = (following % BLOCKS) * BC + tl.arange(0, BC)
        origin = following >> 30
        y0 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, 0, P0, DTYPE)
        if P1 > 0:
            y1 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0, P1, DTYPE)
        if P2 > 0:
            y2 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0 + P1, P2, DTYPE)


@triton.jit
def _store_gradient(
    dy,  # (N, S, C), written
    d,  # (BC, PART) float32
    n,
    c,  # (BC,)
    origin,
    S: tl.constexpr,
    C: tl.constexpr,
    START: tl.constexpr,
    PART: tl.constexpr,
):
    s = origin + START + tl.arange(0, PART)
    inside = (s < S)[:, None] & (c < C)[None, :]
    at = tl.cast(n, tl.int64) * S * C + s[:, None] * C + c[None, :]
    tl.store(dy + at, cast(tl.trans(d), dy.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N"])  # one compilation whatever the batch size
def _token_weights(
    x,  # (N, S, C)
    mean,  # (N, S) float32
    rstd,  # (N, S) float32
    weight,  # (C,)
    bias,  # (C,)
    g,  # (N, S, C)
    keep,  # (N,) float32 or None
    w1,  # (HP, SP), zeros beyond (H, S)
    b1,  # (HP,)
    w2,  # (SP, HP), zeros beyond (S, H)
    dw,  # (splits, HP, SP) float32, written: W1's gradient if FIRST, else W2's transposed
    db1,  # (splits, HP) float32, written if FIRST
    N,
    FIRST: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    HP: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    BC: tl.constexpr,
    BH: tl.constexpr,
    STAGES: tl.constexpr,
    TANH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SP: tl.constexpr = P0 + P1 + P2
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    DTYPE: tl.constexpr = w1.dtype.element_ty
    h = tl.program_id(0) * BH + tl.arange(0, BH)
    split = tl.program_id(1)
    s0 = tl.arange(0, P0)
    s1 = P0 + tl.arange(0, P1 if P1 > 0 else 1)
    s2 = P0 + P1 + tl.arange(0, P2 if P2 > 0 else 1)
    shift = tl.load(b1 + h).to(tl.float32)
    total = tl.zeros((BH,), tl.float32)
    w1_0 = tl.load(w1 + h[:, None] * SP + s0[None, :])
    w2_0 = tl.load(w2 + s0[None, :] * HP + h[:, None])
    d0 = tl.zeros((BH, P0), tl.float32)
    if P1 > 0:
        w1_1 = tl.load(w1 + h[:, None] * SP + s1[None, :])
        w2_1 = tl.load(w2 + s1[None, :] * HP + h[:, None])
        d1 = tl.zeros((BH, P1), tl.float32)
    if P2 > 0:
        w1_2 = tl.load(w1 + h[:, None] * SP + s2[None, :])
        w2_2 = tl.load(w2 + s2[None, :] * HP + h[:, None])
        d2 = tl.zeros((BH, P2), tl.float32)
    for tile in tl.range(split, N * BLOCKS, tl.num_programs(1), num_stages=STAGES):
        n = tile // BLOCKS
        c = (tile % BLOCKS) * BC + tl.arange(0, BC)
        origin = tile >> 30
        kept = 1.0
        if keep is not None:
            kept = tl.load(keep + n)
        y0 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, 0, P0, DTYPE)
        g0 = _load_gradient(g, n, c, origin, S, C, 0, P0, DTYPE)
        u = dot(w1_0, y0, tl.zeros((BH, BC), tl.float32), PRECISION)
        if P1 > 0:
            y1 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0, P1, DTYPE)
            g1 = _load_gradient(g, n, c, origin, S, C, P0, P1, DTYPE)
            u = dot(w1_1, y1, u, PRECISION)
        if P2 > 0:
            y2 = load_normalised(x, mean, rstd, weight, bias, n, c, origin, S, C, P0 + P1, P2, DTYPE)
            g2 = _load_gradient(g, n, c, origin, S, C, P0 + P1, P2, DTYPE)
            u = dot(w1_2, y2, u, PRECISION)
        u += shift[:, None]
        if FIRST:
            dz = dot(w2_0, g0, tl.zeros((BH, BC), tl.float32), PRECISION)
            if P1 > 0:
                dz = dot(w2_1, g1, dz, PRECISION)
            if P2 > 0:
                dz = dot(w2_2, g2, dz, PRECISION)
            du = kept * dz * gelu_gradient(u, TANH)
            total += tl.sum(tl.where((c < C)[None, :], du, 0.0), axis=1)
            left = cast(du, DTYPE)
            d0 = dot(left, tl.trans(y0), d0, PRECISION)
            if P1 > 0:
                d1 = dot(left, tl.trans(y1), d1, PRECISION)
            if P2 > 0:
                d2 = dot(left, tl.trans(y2), d2, PRECISION)
        else:
            left = cast(kept * gelu(u, TANH), DTYPE)
            d0 = dot(left, tl.trans(g0), d0, PRECISION)
            if P1 > 0:
                d1 = dot(left, tl.trans(g1), d1, PRECISION)
            if P2 > 0:
                d2 = dot(left, tl.trans(g2), d2, PRECISION)
    row = (split * HP + h).to(tl.int64)
    if FIRST:
        tl.store(db1 + row, total)
    tl.store(dw + row[:, None] * SP + s0[None, :], d0)
    if P1 > 0:
        tl.store(dw + row[:, None] * SP + s1[None, :], d1)
    if P2 > 0:
        tl.store(dw + row[:, None] * SP + s2[None, :], d2)


def describe_input(
    x: Tensor,
    stats: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor],
    g: Tensor,
    keep: Tensor | None,
    packed: tuple[Tensor, Tensor, Tensor],
    dy: Tensor,
    db2: Tensor,
    act: str,
    tile: Tile,
    programs: int,
) -> Launch:
    """The gradient of the normalised tokens, and what W2's bias adds up to in each (image, channel block)."""
    arguments, constants = _shared(x, stats, norm, g, keep, packed, act, tile)
    blocks = triton.cdiv(x.shape[2], tile.channels)
    return Launch(
        _token_input,
        (min(programs, x.shape[0] * blocks),),
        arguments | {"dy": dy, "db2": db2},
        constants,
        num_warps=tile.warps,
    )


def describe_weights(
    x: Tensor,
    stats: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor],
    g: Tensor,
    keep: Tensor | None,
    packed: tuple[Tensor, Tensor, Tensor],
    dw: Tensor,
    db1: Tensor | None,
    act: str,
    tile: Tile,
) -> Launch:
    """The gradient of W1 and its bias, or of W2 transposed without ``db1``; a share of the images in each split."""
    arguments, constants = _shared(x, stats, norm, g, keep, packed, act, tile)
    hidden = packed[0].shape[0]
    return Launch(
        _token_weights,
        (hidden // tile.hidden, dw.shape[0]),
        arguments | {"dw": dw, "db1": db1},
        constants | {"FIRST": db1 is not None},
        num_warps=tile.warps,
    )


def _shared(x, stats, norm, g, keep, packed, act, tile):
    parts = token_parts(x.shape[1])
    arguments = {"x": x, "mean": stats[0], "rstd": stats[1], "weight": norm[0], "bias": norm[1], "g": g, "keep": keep}
    arguments |= {"w1": packed[0], "b1": packed[1], "w2": packed[2], "N": x.shape[0]}
    constants = {"S": x.shape[1], "C": x.shape[2], "HP": packed[0].shape[0], "P0": parts[0], "P1": parts[1]}
    constants |= {"P2": parts[2], "BC": tile.channels, "BH": tile.hidden, "STAGES": tile.stages}
    return arguments, constants | {"TANH": act == "tanh", "PRECISION": dot_precision(packed[0].dtype)}
