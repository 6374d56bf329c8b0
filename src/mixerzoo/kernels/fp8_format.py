"""FP8 numbers and their scales, for the kernels and for their definition in plain PyTorch alike.

Legend: C channels, D hidden width of channel mixing.

Every scale is known before an image is seen, because LayerNorm bounds what it returns: a row of C numbers with mean 0
and variance 1 has length sqrt(C), so no number in it exceeds sqrt(C), and none of its products with a weight's row w
exceeds sqrt(C) |w|. With those bounds at 448, FP8's largest number, nothing overflows whatever the image, and typical
numbers lie around 16, a thousand times above where FP8 starts to lose precision. (Scales computed from each row, and
from each row and 128 hidden columns, were tried in emulation: the same agreement with float32, for kernels that have to
find the largest number of a tile and to multiply partial sums.)
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
"""Three bits of mantissa; steps of 2^-9 below 2^-6, nothing beyond 448."""

LARGEST = 448.0
_SMALLEST = 1e-12  # for rows that are all 0, so that nothing is divided by it


def row_factor(channels: int) -> float:
    """What normalised rows are multiplied with to become FP8 numbers."""
    return LARGEST * channels**-0.5


def hidden_factors(w3: Tensor, b3: Tensor) -> Tensor:
    """What GELU's results are multiplied with to become FP8 numbers (D,), for ``w3`` (D, C) and ``b3`` (D,)."""
    bound = w3.norm(dim=1) * w3.shape[1] ** 0.5 + b3.abs()
    return LARGEST / bound.clamp_min(_SMALLEST)


def quantise_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 numbers of ``w`` (F, K), the largest of each row 448, and what they are to be multiplied with (F,)."""
    largest = w.abs().amax(1).clamp_min(_SMALLEST)
    return (w * (LARGEST / largest)[:, None]).to(FP8), largest / LARGEST
