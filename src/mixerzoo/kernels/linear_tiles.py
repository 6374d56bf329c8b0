"""Which tile the kernels of :mod:`mixerzoo.kernels.linear` use, by card, size and what their epilogues ask.

Legend: M rows (images x tokens), F output features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import triton

from mixerzoo.kernels.launch import Card


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


_MANY_ROWS = 1 << 16


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
    for tile in _of_size(element_size, TILES[load:]):
        buffers = tile.stages if card.warp_group_mma else tile.stages - 1  # older cards consume one from registers
        operands = element_size * tile.depth * (tile.rows + tile.features) * buffers + 4096
        accumulators = 4 * tile.rows * tile.features  # they pass through shared memory before they are stored
        fits = max(operands, accumulators) <= card.shared_memory
        if fits and tile.features < 2 * features and tile.rows < 2 * rows:
            return tile
    return TILES[-1]


def _of_size(element_size: int, tiles: Sequence[LinearTile]) -> list[LinearTile]:
    """The tiles, as deep in bytes for FP8 as for two-byte elements."""
    return [dataclasses.replace(t, depth=2 * t.depth) if element_size == 1 else t for t in tiles]


FEW_ROWS = LinearTile(64, 32, 64, 4, 4)
"""For so few rows that a wider tile leaves most of a card idle."""


def inference_tile(card: Card, rows: int, features: int, element_size: int, load: int) -> LinearTile:
    """One of two tiles, whatever the number of rows, so that no batch size costs a third compilation.

    Args:
        card: As for :func:`linear_tile`.
        rows: M.
        features: As for :func:`linear_tile`.
        element_size: As for :func:`linear_tile`.
        load: As for :func:`linear_tile`.
    """
    tile = linear_tile(card, _MANY_ROWS, features, element_size, load)
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(features, tile.features)
    return _of_size(element_size, [FEW_ROWS])[0] if 2 * programs <= card.multiprocessors else tile


def gelu_load(save: bool, act: str) -> int:
    """What GELU in the epilogue asks of the registers, for :func:`linear_tile`."""
    return 1 if save or act == "erf" else 0


def inference_load(card: Card, act: str) -> int:
    """The same for the epilogues of inference, which apply statistics or scales before GELU.

    They leave the widest tile enough registers on Hopper, and on data-centre Blackwell they do not.
    """
    return 1 if act == "erf" or card.capability[0] == 10 else 0


def residual_load(card: Card, element_size: int) -> int:
    """The same for the residual without stochastic depth: where the widest tile was seen to leave it enough."""
    wide = card.capability[0] == 9 or (card.capability[0] == 10 and element_size == 2)
    return 0 if wide else 1
