"""GELU as a table of quadratics, the form in which ``vectors.h`` evaluates it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mixerzoo.config import Gelu

PIECES = 16
LIMIT = 4.2
"""Beyond it GELU is taken to be 0 or its argument: both are within 6e-5."""


def gelu_table(act: Gelu) -> Tensor:
    """Coefficients (3, 16) of ``r(t) = max(x, 0) - gelu(x)``, ``t = |x|``: constant, linear, quadratic.

    Piece i is fitted where ``round(t * pieces_per_unit) == i``, at Chebyshev's points and in float64, which is within a
    few percent of the smallest possible largest error.

    Args:
        act: GELU flavour.
    """
    nodes = torch.cos(torch.pi * (torch.arange(64, dtype=torch.float64) + 0.5) / 64)
    pieces = []
    for i in range(PIECES):
        low, high = max(0.0, (i - 0.5) / pieces_per_unit()), min(LIMIT, (i + 0.5) / pieces_per_unit())
        t = (low + high) / 2 + (high - low) / 2 * nodes
        r = -F.gelu(-t, approximate="tanh" if act == "tanh" else "none")
        pieces.append(torch.linalg.lstsq(torch.stack([t**0, t, t**2], 1), r[:, None]).solution[:, 0])
    return torch.stack(pieces, 1)


def pieces_per_unit() -> float:
    """Pieces in one unit of the argument: the last piece ends just before the limit rounds to a seventeenth."""
    return (PIECES - 0.501) / LIMIT
