"""Every kernel at the sizes of the paper's variants, as launches on the meta device: to be compiled, not run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mixerzoo.config import Gelu
from mixerzoo.kernels import layer_norm, linear, linear_tiles, token_mlp, token_mlp_backward
from mixerzoo.kernels.branches import programs_at_once, token_tiles
from mixerzoo.kernels.fp8_format import FP8
from mixerzoo.kernels.launch import Card, Launch
from mixerzoo.kernels.token_tiles import Tile, padded_tokens

_IMAGES = 256


class Size(NamedTuple):
    """Sizes of a layer: tokens, channels and the hidden width of token mixing; channel mixing's is four channels."""

    tokens: int
    channels: int
    hidden: int


SIZES = {
    "S/16": Size(196, 512, 256),
    "B/16": Size(196, 768, 384),
    "L/16": Size(196, 1024, 512),
    "S/32": Size(49, 512, 256),
    "B/32": Size(49, 768, 384),
    "L/32": Size(49, 1024, 512),
    "H/14": Size(256, 1280, 640),
    "Ti/4": Size(64, 128, 64),
}
"""The variants whose token mixing has a kernel (S/8 has 784 tokens)."""


class Entry(NamedTuple):
    """One kernel as it would be launched.

    Attributes:
        kernel: What it does.
        tile: How it cuts its work.
        launch: To be compiled.
    """

    kernel: str
    tile: str
    launch: Launch


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def token_entries(card: Card, size: Size, dtype: torch.dtype, act: Gelu, keep: bool = False) -> Iterator[Entry]:
    """The token-mixing kernels; nothing where the card has no tile for them."""
    tokens, channels, hidden = size
    tiles = token_tiles(card, size, dtype.itemsize, act)
    if tiles is None:
        return
    forward, to_input, to_weights = tiles
    x = _meta(_IMAGES, *size[:2], dtype=dtype)
    stats = (_meta(_IMAGES, tokens), _meta(_IMAGES, tokens))
    norm = (_meta(channels, dtype=dtype), _meta(channels, dtype=dtype))
    weights = (_meta(hidden, tokens, dtype=dtype), _meta(hidden, dtype=dtype), _meta(tokens, hidden, dtype=dtype))
    packed, b2 = token_mlp.pack(*weights), _meta(tokens, dtype=dtype)
    factors = _meta(_IMAGES) if keep else None

    def cut(tile: Tile) -> str:
        return f"{tile.channels} channels, {tile.hidden} hidden, {tile.warps} warps, {tile.stages} stages"

    launch = token_mlp.describe_forward(
        x, stats, norm, packed, b2, factors, x, act, forward, programs_at_once(card, forward, tokens)
    )
    yield Entry("token_mlp forward", cut(forward), launch)
    shared = (x, stats, norm, x, factors, packed)
    db2 = _meta(_IMAGES * triton.cdiv(channels, to_input.channels), padded_tokens(tokens))
    launch = token_mlp_backward.describe_input(*shared, x, db2, act, to_input, programs_at_once(card, to_input, tokens))
    yield Entry("token_mlp backward, input", cut(to_input), launch)
    dw = _meta(2, *packed[0].shape)
    for name, db1 in (("first weight", _meta(2, packed[0].shape[0])), ("second weight", None)):
        launch = token_mlp_backward.describe_weights(*shared, dw, db1, act, to_weights)
        yield Entry(f"token_mlp backward, {name}", cut(to_weights), launch)


def _cut(tile: linear_tiles.LinearTile) -> str:
    return f"{tile.rows} x {tile.features} x {tile.depth}, {tile.warps} warps, {tile.stages} stages"


def channel_entries(card: Card, size: Size, dtype: torch.dtype, act: Gelu, keep: bool = False) -> Iterator[Entry]:
    """The channel-mixing kernels, and LayerNorm."""
    tokens, channels, _ = size
    hidden, rows = 4 * channels, _IMAGES * tokens
    x, y = _meta(_IMAGES, tokens, channels, dtype=dtype), _meta(rows, channels, dtype=dtype)
    u, w = _meta(rows, hidden, dtype=dtype), _meta(hidden, channels, dtype=dtype)
    stats = (_meta(_IMAGES, tokens), _meta(_IMAGES, tokens))
    scale, partial = _meta(channels, dtype=dtype), _meta(2, channels)
    factors = _meta(_IMAGES) if keep else None

    yield Entry("row statistics", "", layer_norm.describe_layer_norm(x, scale, scale, None, *stats, 1e-6))
    yield Entry("LayerNorm", "", layer_norm.describe_layer_norm(x, scale, scale, x, *stats, 1e-6))
    launch = layer_norm.describe_layer_norm_backward(x, x, x, *stats, scale, x, partial, partial)
    yield Entry("LayerNorm backward", "", launch)
    tile = linear_tiles.linear_tile(card, rows, hidden, dtype.itemsize, linear_tiles.gelu_load(False, act))
    launch = linear.describe_linear_gelu(y, w, _meta(hidden, dtype=dtype), None, u, act, tile)
    yield Entry("channel_mlp product + GELU", _cut(tile), launch)
    tile = linear_tiles.linear_tile(card, rows, hidden, dtype.itemsize, linear_tiles.gelu_load(True, act))
    launch = linear.describe_linear_gelu(y, w, _meta(hidden, dtype=dtype), u, u, act, tile)
    yield Entry("channel_mlp product + GELU, training", _cut(tile), launch)
    tile = linear_tiles.linear_tile(card, rows, channels, dtype.itemsize, 1)
    launch = linear.describe_linear_residual(u, w.t().contiguous(), scale, x, factors, x, tile)
    yield Entry("channel_mlp product + residual", _cut(tile), launch)
    tile = linear_tiles.linear_tile(card, rows, hidden, dtype.itemsize, 2)
    sums = _meta(triton.cdiv(rows, tile.rows), hidden)
    launch = linear.describe_linear_gradient(x, w.t().contiguous(), u, factors, u, u, sums, act, tile)
    yield Entry("channel_mlp product + GELU's gradient", _cut(tile), launch)
    yield from _inference_entries(card, size, dtype, act)


def _inference_entries(card: Card, size: Size, dtype: torch.dtype, act: Gelu) -> Iterator[Entry]:
    """The channel-mixing kernels of the engine, for many rows and for few, and in FP8 where the card has that.

    Only what it runs in two bytes: in float32 it has no kernels of its own.
    """
    tokens, channels, _ = size
    hidden = 4 * channels
    if dtype.itemsize != 2:
        return
    for rows, which in ((_IMAGES * tokens, ""), (tokens, ", few rows")):
        x, z = _meta(rows, channels, dtype=dtype), _meta(rows, hidden, dtype=dtype)
        w3, w4 = _meta(hidden, channels, dtype=dtype), _meta(channels, hidden, dtype=dtype)
        b3, b4 = _meta(hidden, dtype=dtype), _meta(channels, dtype=dtype)
        tile = linear_tiles.inference_tile(card, rows, hidden, 2, linear_tiles.inference_load(card, act))
        launch = linear.describe_normalised_gelu(x, (_meta(rows),) * 2, w3, _meta(hidden), b3, z, act, tile)
        yield Entry(f"engine: normalisation, product + GELU{which}", _cut(tile), launch)
        tile = linear_tiles.inference_tile(card, rows, channels, 2, linear_tiles.residual_load(card, 2))
        launch = linear.describe_linear_residual(z, w4, b4, x[None], None, x, tile)
        yield Entry(f"engine: product + residual{which}", _cut(tile), launch)
        if card.capability >= (8, 9):
            yield from _fp8_entries(card, x, hidden, act, which)


def _fp8_entries(card: Card, x: Tensor, hidden: int, act: Gelu, which: str) -> Iterator[Entry]:
    rows, channels = x.shape
    y, z = _meta(rows, channels, dtype=FP8), _meta(rows, hidden, dtype=FP8)
    w3, w4 = _meta(hidden, channels, dtype=FP8), _meta(channels, hidden, dtype=FP8)
    wide, narrow = _meta(hidden), _meta(channels)
    if not which:
        launch = layer_norm.describe_layer_norm(x, None, None, y, _meta(rows), _meta(rows), 1e-6, 16.0)
        yield Entry("engine, FP8: normalisation", "", launch)
    tile = linear_tiles.inference_tile(card, rows, hidden, 1, linear_tiles.inference_load(card, act))
    launch = linear.describe_fp8_gelu(y, w3, wide, wide, wide, z, act, tile)
    yield Entry(f"engine, FP8: product + GELU{which}", _cut(tile), launch)
    tile = linear_tiles.inference_tile(card, rows, channels, 1, linear_tiles.residual_load(card, 1))
    launch = linear.describe_linear_residual(z, w4, narrow, x[None], None, x, tile, narrow)
    yield Entry(f"engine, FP8: product + residual{which}", _cut(tile), launch)
