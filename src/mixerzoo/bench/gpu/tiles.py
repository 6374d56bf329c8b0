"""Which tiles to try for each kernel: the tables' own, then their neighbours, the likeliest first."""

from __future__ import annotations

import itertools

from mixerzoo.config import MixerConfig

SHARED_MEMORY = 232_448
"""Bytes a block may use on Hopper and data-centre Blackwell, the cards for which tiles are looked for."""

FORWARD_KERNELS = ("token_forward", "linear_gelu_alone", "linear_residual")
"""What inference runs."""

BACKWARD_KERNELS = ("token_input", "token_weights", "linear_gelu", "linear_gradient")
"""What training runs besides."""


def candidates(kernel: str, config: MixerConfig, most: int) -> list[list[int]]:
    """Tiles to try: fields of :class:`Tile` or :class:`LinearTile`, without those that cannot fit into shared memory.

    Args:
        kernel: One of :data:`FORWARD_KERNELS` or :data:`BACKWARD_KERNELS`.
        config: The variant.
        most: Return no more than this.
    """
    tables = _linear_tiles() if kernel.startswith("linear") else _token_tiles(kernel, config)
    return [list(tile) for tile in dict.fromkeys(tables)][:most]


def _token_tiles(kernel: str, config: MixerConfig) -> list[tuple[int, ...]]:
    from mixerzoo.kernels import token_tiles as known

    table = {"token_forward": known.FORWARD, "token_input": known.INPUT, "token_weights": known.WEIGHTS}[kernel]
    if kernel == "token_weights":  # the hidden chunk is the products' long side there, channels are streamed
        grid = itertools.product((32, 64, 16, 128), (64, 128), (8, 4), (2, 1, 3))
    else:
        grid = itertools.product((128, 64, 32), (64, 32, 128), (8, 4), (2, 3, 1, 4))
    around = [known.Tile(*fields) for fields in grid]
    chunk = known.hidden_chunk(config.tokens_mlp_dim)
    fitting = [
        tile
        for tile in (*table.candidates, *around)
        if table.shared_memory(tile, config.num_tokens, 2) <= SHARED_MEMORY
        and tile.hidden <= chunk
        and _fills_registers(tile)
    ]
    return [(tile.channels, tile.hidden, tile.warps, tile.stages) for tile in fitting]


def _fills_registers(tile: object) -> bool:
    """Whether a tile is neither far too large for its warps (which spill) nor far too small."""
    channels, hidden, warps = (getattr(tile, name) for name in ("channels", "hidden", "warps"))
    accumulators = max(channels, hidden)
    return bool(accumulators <= 64 if warps == 4 else accumulators >= 64)


def _linear_tiles() -> list[tuple[int, ...]]:
    from mixerzoo.kernels.linear_tiles import TILES

    table = [(tile.rows, tile.features, tile.depth, tile.warps, tile.stages) for tile in TILES[:-1]]
    sides = ((128, 256), (128, 128), (256, 128), (64, 256), (256, 64), (64, 128), (128, 64), (64, 64))
    around = itertools.product((64, 32, 128), (8, 4), (3, 4, 2), sides)
    fitting = [
        (rows, features, depth, warps, stages)
        for depth, warps, stages, (rows, features) in around
        if 2 * depth * (rows + features) * stages + 4096 <= SHARED_MEMORY
        and 32 <= rows * features // (32 * warps) <= 128  # accumulators a thread
    ]
    return [*table, *fitting]
