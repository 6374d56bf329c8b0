"""Which tile the token-mixing kernels use, by card, shape and dtype.

A tile is a block of channels of one image and a chunk of the hidden width. The tokens are the third side: they are cut
into at most three powers of two (196 = 128 + 64 + 4, padded to 208), because one power of two would waste 31 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


FORWARD = (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(16, 16, 4, 1))
INPUT = (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(16, 16, 4, 1))
WEIGHTS = (Tile(32, 128, 8, 2), Tile(32, 64, 4, 2), Tile(32, 64, 4, 1), Tile(16, 32, 4, 1), Tile(16, 16, 4, 1))
"""Candidates of each kernel, the one expected to be fastest first."""


def forward_bytes(tile: Tile, tokens: int, element_size: int) -> int:
    """Shared memory of the forward kernel: the normalised tokens, and two weight chunks a stage."""
    return element_size * padded_tokens(tokens) * (tile.channels + 2 * tile.hidden * tile.stages) + _SLACK


def input_bytes(tile: Tile, tokens: int, element_size: int) -> int:
    """Shared memory of the input-gradient kernel: tokens and their gradient, and two weight chunks a stage."""
    return element_size * padded_tokens(tokens) * (2 * tile.channels + 2 * tile.hidden * tile.stages) + _SLACK


def weights_bytes(tile: Tile, tokens: int, element_size: int) -> int:
    """Shared memory of the weight-gradient kernel: two weight chunks, and the streamed tokens and gradients."""
    return element_size * padded_tokens(tokens) * (2 * tile.hidden + (tile.stages + 2) * tile.channels) + _SLACK


_SLACK = 4096  # biases, statistics, barriers


def choose_tile(
    candidates: tuple[Tile, ...],
    bytes_of: Callable[[Tile, int, int], int],
    card: Card,
    shape: tuple[int, int, int],
    element_size: int,
) -> Tile | None:
    """The first candidate that fits into the card's shared memory and is no larger than the problem.

    Args:
        candidates: One of the tables above.
        bytes_of: The kernel's shared memory.
        card: Where it is to run.
        shape: Tokens, channels, hidden width.
        element_size: Bytes of a weight.

    Returns:
        The tile, or None if none fits.
    """
    tokens, channels, hidden = shape
    for tile in candidates:
        smallest = tile is candidates[-1]
        covered = tile.channels < 2 * channels and tile.hidden <= hidden_chunk(hidden)
        if bytes_of(tile, tokens, element_size) <= card.shared_memory and (covered or smallest):
            return tile
    return None
