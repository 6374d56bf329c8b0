"""Which tile the token-mixing kernels use, by card, shape and dtype.

A tile is a block of channels of one image and a chunk of the hidden width. The tokens are the third side: they are cut
into at most three powers of two (196 = 128 + 64 + 4, padded to 208), because one power of two would waste 31 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mixerzoo.config import Gelu
from mixerzoo.kernels.launch import Card

MAX_TOKENS = 256
"""More tokens than this do not fit into the registers that accumulate them."""


@dataclass(frozen=True)
class Tile:
    """How one program cuts its work.

    Attributes:
        channels: Channels of one image a program works on at a time.
        hidden: Hidden units a program works on at a time.
        warps: Warps a program.
        stages: Steps of the inner loop whose operands are in shared memory at once.
    """

    channels: int
    hidden: int
    warps: int
    stages: int


def token_parts(tokens: int) -> tuple[int, int, int]:
    """Cut the tokens into up to three powers of two between 16 and 128, largest first; 0 where fewer do.

    The last part is as large as it must be to hold what is left.
    """
    left, parts = -(-tokens // 16) * 16, []
    for is_last in (False, False, True):
        part = min(1 << (left.bit_length() - 1), 128) if left > 0 else 0
        if is_last and part < left:
            part *= 2
        parts.append(part)
        left -= part
    return parts[0], parts[1], parts[2]


def padded_tokens(tokens: int) -> int:
    """Tokens after :func:`token_parts`."""
    return sum(token_parts(tokens))


def hidden_chunk(hidden: int) -> int:
    """What the hidden width is padded to a multiple of: every tile's ``hidden`` divides it."""
    return min(max(1 << (hidden - 1).bit_length(), 16), 128)


@dataclass(frozen=True)
class TileTable:
    """Tiles of one kernel.

    Attributes:
        candidates: The one expected to be fastest first.
        token_rows: Rows of all tokens that a tile keeps in shared memory, as a function of the tile: each takes the
            padded tokens times the size of an element.
        spilling: Tiles that leave too few registers: first number of the compute capability, GELU flavour, tile.
    """

    candidates: tuple[Tile, ...]
    token_rows: Callable[[Tile], int]
    spilling: frozenset[tuple[int, Gelu, Tile]]

    def shared_memory(self, tile: Tile, tokens: int, element_size: int) -> int:
        """Bytes a block needs, at most."""
        return element_size * padded_tokens(tokens) * self.token_rows(tile) + _SLACK

    def choose(self, card: Card, shape: tuple[int, int, int], element_size: int, act: Gelu) -> Tile | None:
        """The first candidate that fits into the card's shared memory and is no larger than the problem.

        Args:
            card: Where it is to run.
            shape: Tokens, channels, hidden width.
            element_size: Bytes of a weight.
            act: GELU flavour.

        Returns:
            The tile, or None if none fits.
        """
        tokens, channels, hidden = shape
        for tile in self.candidates:
            if self.shared_memory(tile, tokens, element_size) > card.shared_memory:
                continue
            covered = tile.channels < 2 * channels and tile.hidden <= hidden_chunk(hidden)
            if tile == self.candidates[-1] or (covered and (card.capability[0], act, tile) not in self.spilling):
                return tile
        return None


_SLACK = 4096  # biases, statistics, barriers
_SMALL = (Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(16, 16, 4, 1))

FORWARD = TileTable(
    (Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(128, 32, 8, 3), Tile(64, 32, 4, 2), *_SMALL),
    lambda tile: tile.channels + 2 * tile.hidden * tile.stages,  # normalised tokens; two weight chunks a stage
    frozenset((10, act, Tile(128, 64, 8, stages)) for act in ("tanh", "erf") for stages in (2, 3)),
)
INPUT = TileTable(
    (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(64, 32, 8, 2), *_SMALL),
    lambda tile: 2 * tile.channels + 2 * tile.hidden * tile.stages,  # tokens and gradient; two weight chunks a stage
    frozenset(
        {
            (9, "erf", Tile(128, 64, 8, 2)),
            (10, "tanh", Tile(128, 64, 8, 2)),
            (10, "tanh", Tile(128, 32, 8, 2)),
            (10, "tanh", Tile(64, 32, 4, 2)),
            (10, "erf", Tile(128, 64, 8, 2)),
            (10, "erf", Tile(128, 32, 8, 2)),
            (10, "erf", Tile(64, 32, 4, 2)),
        }
    ),
)
WEIGHTS = TileTable(
    (Tile(32, 128, 8, 2), Tile(32, 64, 4, 2), Tile(32, 64, 4, 1), Tile(16, 32, 4, 1), Tile(16, 16, 4, 1)),
    lambda tile: 2 * tile.hidden + (tile.stages + 2) * tile.channels,  # two weight chunks; streamed tokens, gradients
    frozenset(),
)
