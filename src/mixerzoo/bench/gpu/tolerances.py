"""How far from float64 a result may be: one table, each entry with its reason.

An error is ``||a - r|| / ||r||`` over a whole tensor. It may be ``FACTOR`` times that of plain PyTorch in the same
dtype on the same device (the definition run through autograd), plus an absolute term for results that PyTorch happens
to get almost exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

FACTOR = 2.0
"""A fused operation rounds at other places than separate ones, about as often; errors add up as their squares do."""


@dataclass(frozen=True)
class Tolerance:
    """One dtype's absolute term.

    Attributes:
        absolute: Added to ``FACTOR`` times PyTorch's error.
        reason: Why so much.
    """

    absolute: float
    reason: str

    def limit(self, pytorch: float) -> float:
        """The largest error allowed beside PyTorch's."""
        return FACTOR * pytorch + self.absolute


TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "bfloat16": Tolerance(1e-3, "a quarter of the unit roundoff, 2^-8 = 3.9e-3"),
        "float16": Tolerance(1.2e-4, "a quarter of the unit roundoff, 2^-11 = 4.9e-4"),
        "float32": Tolerance(
            4e-6,
            "a float32 sum of K terms in sequence drifts by 2^-24 sqrt(K / 6): 1.8e-6 for H/14's 5,120; twice that",
        ),
        "tf32": Tolerance(
            3e-3,
            "matrix units truncate operands to 11 bits, a bias of up to 2^-10 an operand and so 2e-3 a product, where "
            "the library may round them, or use float32 for rows that are not aligned",
        ),
    }
)
"""By the way products run: a dtype, or ``tf32`` for float32 under ``torch.set_float32_matmul_precision("high")``."""

MAX_DIFFERENCE = 3e-2
"""How far two bfloat16 results for the same may be apart: each carries an error of up to 1.2e-2. It only tells a wrong
result (a misplaced tile, a result that is timed) from a right one; against float64 the table judges."""
