"""Tensors between guard bands: what a kernel writes or reads beyond its tensors shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BAND = 1 << 16
"""Elements on either side: more than a tile of any kernel strays, and a multiple of every alignment that a library
looks at, so that the same code runs as without bands."""

CANARIES = (7.0, math.nan)
"""Two values of the bands: results must be the same for both. NaN spreads to whatever it is mixed into. To the first
one each tensor's number is added: what is read beyond one and written beyond another is no canary there."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, so that NaN equals itself."""
    return tensor.contiguous().view(_BITS[tensor.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether shape, dtype and every bit agree."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


class Guards:
    """Places tensors between bands and remembers them.

    Args:
        canary: What the bands of the first tensor hold; one more for each further tensor.
    """

    def __init__(self, canary: float):
        self._canary = canary
        self._buffers: list[tuple[str, Tensor, int, float]] = []

    def place(self, name: str, tensor: Tensor) -> Tensor:
        """A contiguous copy of the tensor between bands."""
        view = self.reserve(name, tuple(tensor.shape), tensor.dtype, tensor.device)
        return view.copy_(tensor)

    def reserve(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for a tensor between bands, itself full of the canary."""
        elements, canary = math.prod(shape), self._canary + len(self._buffers)
        buffer = torch.full((elements + 2 * BAND,), canary, dtype=dtype, device=device)
        self._buffers.append((name, buffer, elements, canary))
        return buffer[BAND : BAND + elements].view(shape)

    def broken(self) -> list[str]:
        """Names of the tensors whose bands were written to."""
        return [name for name, buffer, elements, canary in self._buffers if not _intact(buffer, elements, canary)]


def _intact(buffer: Tensor, elements: int, canary: float) -> bool:
    fresh = torch.full((BAND,), canary, dtype=buffer.dtype, device=buffer.device)
    return same_bits(buffer[:BAND], fresh) and same_bits(buffer[BAND + elements :], fresh)
