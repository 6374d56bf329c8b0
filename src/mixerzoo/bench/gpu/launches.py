"""Each kernel on random tensors, launched directly: between guard bands, or with a tile of one's choice.

Legend: N images, S tokens, C channels, H hidden width, SP and HP the same padded, M = N S rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from mixerzoo.bench.gpu.inputs import EPS, Random, Setting, random_branch
from mixerzoo.errors import ConfigError
from mixerzoo.kernels import layer_norm, linear, linear_tiles, token_mlp, token_mlp_backward
from mixerzoo.kernels.branches import programs_at_once, token_tiles, weight_splits
from mixerzoo.kernels.launch import Launch, card_of
from mixerzoo.kernels.token_tiles import Tile, padded_tokens


class Place(Protocol):
    """Where tensors lie: :class:`mixerzoo.bench.gpu.guards.Guards`, or :class:`Anywhere`."""

    def place(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor, or a copy of it elsewhere."""

    def reserve(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for a result."""


class Anywhere:
    """Tensors wherever the allocator puts them."""

    def place(self, name: str, tensor: Tensor) -> Tensor:  # noqa: ARG002
        """The tensor itself."""
        return tensor

    def reserve(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:  # noqa: ARG002
        """Uninitialised memory."""
        return torch.empty(shape, dtype=dtype, device=device)


@dataclass(frozen=True)
class Prepared:
    """A kernel ready to run.

    Attributes:
        launches: To be called in order.
        results: Every tensor that they write, by name; partial sums have their slots first.
        slots: Names of those that hold partial sums.
    """

    launches: list[Launch]
    results: dict[str, Tensor]
    slots: tuple[str, ...] = ()

    def run(self) -> None:
        """Launch."""
        for launch in self.launches:
            launch()

    def totals(self) -> dict[str, Tensor]:
        """Results with partial sums added up, so that they can be compared across tiles."""
        return {name: tensor.sum(0) if name in self.slots else tensor for name, tensor in self.results.items()}


class _Builder:
    """Tensors of one problem in their places, and room for results."""

    def __init__(self, setting: Setting, at: Place, seed: int):
        self.setting, self._at = setting, at
        self.card = card_of(setting.device)
        branch, g = random_branch(setting, seed)
        placed = [None if t is None else at.place(n, t) for n, t in zip(branch._fields, branch, strict=True)]
        self.x, self.weight, self.bias, self.w1, self.b1, self.w2, self.b2 = [t for t in placed[:7] if t is not None]
        self.keep = placed[7]
        self.norm = (self.weight, self.bias)
        self.g = at.place("g", g)
        self.results: dict[str, Tensor] = {}
        self._random = Random(setting.device, seed + 1)

    def result(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        self.results[name] = self._at.reserve(name, shape, dtype, self.setting.device)
        return self.results[name]

    def values(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        return self._at.place(name, self._random.normal(*shape, dtype=dtype))

    def stats(self) -> tuple[Tensor, Tensor]:
        mean, rstd = layer_norm.row_stats(self.x, self.weight, self.bias, EPS)
        return self._at.place("mean", mean), self._at.place("rstd", rstd)

    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        w1, b1, w2 = token_mlp.pack(self.w1, self.b1, self.w2)
        return self._at.place("packed w1", w1), self._at.place("packed b1", b1), self._at.place("packed w2", w2)

    def token_tile(self, position: int) -> Tile:
        s = self.setting
        tiles = token_tiles(self.card, (s.tokens, s.channels, s.hidden), s.dtype.itemsize, s.act)
        if tiles is None:
            raise ConfigError(f"No token-mixing tile for {s.tokens} tokens fits into this card's shared memory.")
        return tiles[position]

    def linear_tile(self, features: int, load: int) -> linear_tiles.LinearTile:
        s = self.setting
        return linear_tiles.linear_tile(self.card, s.images * s.tokens, features, s.dtype.itemsize, load)


def _token_forward(b: _Builder, tile: Tile | None) -> Prepared:
    tile = tile or b.token_tile(0)
    out = b.result("out", *b.x.shape, dtype=b.x.dtype)
    act, programs = b.setting.act, programs_at_once(b.card, tile, b.setting.tokens)
    packed = b.packed()
    launch = token_mlp.describe_forward(b.x, b.stats(), b.norm, packed, b.b2, b.keep, out, act, tile, programs)
    return Prepared([launch], b.results)


def _token_input(b: _Builder, tile: Tile | None) -> Prepared:
    tile, s = tile or b.token_tile(1), b.setting
    dy = b.result("dy", *b.x.shape, dtype=s.dtype)
    db2 = b.result("db2", s.images * -(-s.channels // tile.channels), padded_tokens(s.tokens))
    launch = token_mlp_backward.describe_input(
        b.x, b.stats(), b.norm, b.g, b.keep, b.packed(), dy, db2, s.act, tile, programs_at_once(b.card, tile, s.tokens)
    )
    return Prepared([launch], b.results, ("db2",))


def _token_weights(b: _Builder, tile: Tile | None) -> Prepared:
    tile, s = tile or b.token_tile(2), b.setting
    packed, stats = b.packed(), b.stats()
    padded = packed[0].shape
    splits = weight_splits(b.card, tile, (s.images, s.tokens, s.channels), padded[0])
    dw1, dw2, db1 = (
        b.result("dw1", splits, *padded),
        b.result("dw2", splits, *padded),
        b.result("db1", splits, padded[0]),
    )
    launches = [
        token_mlp_backward.describe_weights(b.x, stats, b.norm, b.g, b.keep, packed, dw, into, s.act, tile)
        for dw, into in ((dw1, db1), (dw2, None))
    ]
    return Prepared(launches, b.results, ("dw1", "dw2", "db1"))


def _row_stats(b: _Builder, _: None) -> Prepared:
    mean, rstd = b.result("mean", *b.x.shape[:2]), b.result("rstd", *b.x.shape[:2])
    launch = layer_norm.describe_layer_norm(b.x, b.weight, b.bias, None, mean, rstd, EPS)
    return Prepared([launch], b.results)


def _layer_norm(b: _Builder, _: None) -> Prepared:
    y = b.result("y", *b.x.shape, dtype=b.setting.dtype)
    mean, rstd = b.result("mean", *b.x.shape[:2]), b.result("rstd", *b.x.shape[:2])
    launch = layer_norm.describe_layer_norm(b.x, b.weight, b.bias, y, mean, rstd, EPS)
    return Prepared([launch], b.results)


def _layer_norm_backward(b: _Builder, _: None) -> Prepared:
    s, programs = b.setting, 3  # few, so that every program goes round more than once
    dy = b.values("dy", *b.x.shape, dtype=s.dtype)
    dx = b.result("dx", *b.x.shape, dtype=b.x.dtype)
    dweight, dbias = b.result("dweight", programs, s.channels), b.result("dbias", programs, s.channels)
    launch = layer_norm.describe_layer_norm_backward(dy, b.g, b.x, *b.stats(), b.weight, dx, dweight, dbias)
    return Prepared([launch], b.results, ("dweight", "dbias"))


def _linear_gelu(b: _Builder, tile: linear_tiles.LinearTile | None) -> Prepared:
    s = b.setting
    y = b.values("y", s.images, s.tokens, s.channels, dtype=s.dtype)
    u, z = (b.result(name, s.images, s.tokens, s.hidden, dtype=s.dtype) for name in ("u", "z"))
    launch = linear.describe_linear_gelu(
        y, b.w1, b.b1, u, z, s.act, tile or b.linear_tile(s.hidden, linear_tiles.gelu_load(True, s.act))
    )
    return Prepared([launch], b.results)


def _linear_gelu_alone(b: _Builder, tile: linear_tiles.LinearTile | None) -> Prepared:
    s = b.setting
    y = b.values("y", s.images, s.tokens, s.channels, dtype=s.dtype)
    z = b.result("z", s.images, s.tokens, s.hidden, dtype=s.dtype)
    launch = linear.describe_linear_gelu(
        y, b.w1, b.b1, None, z, s.act, tile or b.linear_tile(s.hidden, linear_tiles.gelu_load(False, s.act))
    )
    return Prepared([launch], b.results)


def _linear_residual(b: _Builder, tile: linear_tiles.LinearTile | None) -> Prepared:
    s = b.setting
    z = b.values("z", s.images, s.tokens, s.hidden, dtype=s.dtype)
    out = b.result("out", *b.x.shape, dtype=b.x.dtype)
    tile = tile or b.linear_tile(s.channels, 1)
    return Prepared([linear.describe_linear_residual(z, b.w2, b.b2, b.x, b.keep, out, tile)], b.results)


def _linear_gradient(b: _Builder, tile: linear_tiles.LinearTile | None) -> Prepared:
    s = b.setting
    tile = tile or b.linear_tile(s.hidden, 2)
    g = b.values("low g", s.images, s.tokens, s.channels, dtype=s.dtype)
    u = b.values("u", s.images, s.tokens, s.hidden, dtype=s.dtype)
    du, z = (b.result(name, s.images, s.tokens, s.hidden, dtype=s.dtype) for name in ("du", "z"))
    sums = b.result("sums", -(-s.images * s.tokens // tile.rows), s.hidden)
    launch = linear.describe_linear_gradient(g, b.w2, u, b.keep, du, z, sums, s.act, tile)
    return Prepared([launch], b.results, ("sums",))


TOKEN_KERNELS = ("token_forward", "token_input", "token_weights")
"""Those whose tile is a :class:`mixerzoo.kernels.token_tiles.Tile`."""

_KERNELS: Mapping[str, Callable[[_Builder, Any], Prepared]] = MappingProxyType(
    {
        "token_forward": _token_forward,
        "token_input": _token_input,
        "token_weights": _token_weights,
        "row_stats": _row_stats,
        "layer_norm": _layer_norm,
        "layer_norm_backward": _layer_norm_backward,
        "linear_gelu": _linear_gelu,
        "linear_gelu_alone": _linear_gelu_alone,
        "linear_residual": _linear_residual,
        "linear_gradient": _linear_gradient,
    }
)


def prepare(kernel: str, setting: Setting, at: Place, tile: list[int] | None = None, seed: int = 0) -> Prepared:
    """Build a kernel's launches.

    Args:
        kernel: Name of the kernel.
        setting: The problem.
        at: Where its tensors lie.
        tile: Fields of its tile; None for the one that the table gives.
        seed: Of the random tensors.

    Raises:
        ConfigError: The table has no tile for this problem.
    """
    cut = None
    if tile is not None:
        cut = Tile(*tile) if kernel in TOKEN_KERNELS else linear_tiles.LinearTile(*tile)
    return _KERNELS[kernel](_Builder(setting, at, seed), cut)
