"""Matrix products with what follows them in the epilogue: GELU, the residual, or GELU's derivative.

Legend: M rows (images x tokens), K contracted width, F output features, S tokens of an image.

    GELU       u = a w^T + b,  out = gelu(u)              and u itself where the backward pass will want it
    RESIDUAL   out = residual + keep (a w^T + b)          keep is one factor for each image
    GRADIENT   du = keep (a w) gelu'(u),  z = keep gelu(u)      and the column sums of du, one slot a row block
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mixerzoo.kernels.arithmetic import cast, dot, gelu, gelu_gradient
from mixerzoo.kernels.launch import Card, Launch, dot_precision

_GELU, _RESIDUAL, _GRADIENT = 0, 1, 2


@triton.jit(do_not_specialize=["M"])  # one compilation whatever the batch size
def _linear(
    a,  # (M, K)
    w,  # (F, K), or (K, F) for GRADIENT
    b,  # (F,), not for GRADIENT
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
    # Programs that run together share operands: GROUP row blocks go through all features before the next ones.
    blocks_m = tl.cdiv(M, BM)
    BLOCKS_F: tl.constexpr = (F + BF - 1) // BF
    group = tl.program_id(0) // (GROUP * BLOCKS_F)
    height = tl.minimum(blocks_m - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * BLOCKS_F)
    block_m = group * GROUP + within % height
    block_f = within // height
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
    if EPILOGUE == 0:
        acc += tl.load(b + features).to(tl.float32)[None, :]
        if u is not None:
            tl.store(u + above * F + at, cast(acc, u.dtype.element_ty), mask=inside)
        tl.store(out + above * F + at, cast(gelu(acc, TANH), out.dtype.element_ty), mask=inside)
    elif EPILOGUE == 1:
        acc += tl.load(b + features).to(tl.float32)[None, :]
        passed = tl.load(residual + above * F + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + above * F + at, cast(passed + kept[:, None] * acc, out.dtype.element_ty), mask=inside)
    else:
        before = tl.load(u + above * F + at, mask=inside, other=0.0).to(tl.float32)
        du = tl.where(exists[:, None], kept[:, None] * acc * gelu_gradient(before, TANH), 0.0)
        tl.store(out + above * F + at, cast(du, out.dtype.element_ty), mask=inside)
        tl.store(z + above * F + at, cast(kept[:, None] * gelu(before, TANH), z.dtype.element_ty), mask=inside)
        tl.store(sums + block_m * F + f, tl.sum(du, axis=0), mask=f < F)


@dataclass(frozen=True)
class LinearTile:
    """How the product is cut.

    Attributes:
        rows: Rows a program computes.
        features: Features a program computes.
        depth: Contracted width a step.
        warps: Warps a program.
        stages: Steps whose operands are in shared memory at once.
    """

    rows: int
    features: int
    depth: int
    warps: int
    stages: int


TILES = (
    LinearTile(128, 256, 64, 8, 3),
    LinearTile(128, 128, 64, 8, 3),
    LinearTile(128, 64, 64, 8, 3),
    LinearTile(128, 128, 32, 8, 3),
    LinearTile(64, 64, 32, 4, 3),
    LinearTile(32, 32, 16, 4, 2),
)
"""Candidates, the one expected to be fastest first."""


def linear_tile(card: Card, rows: int, features: int, element_size: int, load: int) -> LinearTile:
    """The first candidate that fits into the card's shared memory and is no larger than the problem.

    Args:
        card: Where it is to run.
        rows: M.
        features: F.
        element_size: Bytes of a weight.
        load: What the epilogue asks of the registers: 0 nothing much, 1 one matrix beside the output or the error
            function, 2 more than that. The wider the tile, the less is left.
    """
    for tile in TILES[load:]:
        buffers = tile.stages if card.warp_group_mma else tile.stages - 1  # older cards consume one from registers
        operands = element_size * tile.depth * (tile.rows + tile.features) * buffers + 4096
        accumulators = 4 * tile.rows * tile.features  # they pass through shared memory before they are stored
        fits = max(operands, accumulators) <= card.shared_memory
        if fits and tile.features < 2 * features and tile.rows < 2 * rows:
            return tile
    return TILES[-1]


def gelu_load(save: bool, act: str) -> int:
    """What GELU in the epilogue asks of the registers, for :func:`linear_tile`."""
    return 1 if save or act == "erf" else 0


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


def describe_linear_residual(
    a: Tensor, w: Tensor, b: Tensor, residual: Tensor, keep: Tensor | None, out: Tensor, tile: LinearTile
) -> Launch:
    """``out = residual + keep (a w^T + b)``.

    Args:
        a: (M, K), contiguous.
        w: (F, K), contiguous, in the dtype of ``a``.
        b: (F,).
        residual: (N, S, F), contiguous, N S = M.
        keep: (N,), float32; None for 1.
        out: As ``residual``, written.
        tile: How the product is cut.
    """
    arguments = {"a": a, "w": w, "b": b, "residual": residual, "keep": keep, "out": out}
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
    unused = dict.fromkeys(("b", "u", "residual", "keep", "z", "sums"))
    return Launch(
        _linear,
        (triton.cdiv(rows, tile.rows) * triton.cdiv(features, tile.features),),
        unused | tensors | {"M": rows},
        {"EPILOGUE": epilogue, "S": tokens, "F": features, "K": width}
        | {"BM": tile.rows, "BF": tile.features, "BK": tile.depth, "GROUP": 8, "STAGES": tile.stages}
        | {"TANH": act == "tanh", "PRECISION": dot_precision(a.dtype)},
        num_warps=tile.warps,
    )
