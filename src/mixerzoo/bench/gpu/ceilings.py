"""What this card can do, measured in the run that compares against it."""

from __future__ import annotations

import torch

from mixerzoo.bench.gpu.inputs import NUMERICS, precision, this_device
from mixerzoo.bench.gpu.timing import Step, Timing, time_graph
from mixerzoo.ops.backends.triton import interpreted

_PRODUCTS = {"bfloat16": 8192, "float16": 4096, "float32": 4096, "tf32": 4096}
_COPY_BYTES = 4 << 30
_CACHED_BYTES = (4 << 20, 8 << 20, 16 << 20)


def measure() -> dict[str, float | None]:
    """Measure the ceilings; every value is None in a rehearsal.

    Returns:
        TFLOP/s of large matrix products by how they run (random data), and TB/s, counting both directions, of a copy in
        memory (``copy``) and of one within the L2 cache (``l2``).
    """
    rates = {numerics: _product(numerics, 32 if interpreted() else side) for numerics, side in _PRODUCTS.items()}
    rates["copy"] = _copy(1 << 10 if interpreted() else _COPY_BYTES, 2)
    cached = [_copy(size, 50) for size in ((1 << 10,) if interpreted() else _CACHED_BYTES)]
    rates["l2"] = max((rate for rate in cached if rate is not None), default=None)
    return rates


def _rate(amount: float, timing: Timing) -> float | None:
    """10^12 a second."""
    return None if timing.median is None else amount / timing.median / 1e6


def _product(numerics: str, side: int) -> float | None:
    device, dtype = this_device(), NUMERICS[numerics]
    pairs = [[torch.randn(side, side, device=device).to(dtype) for _ in range(2)] for _ in range(3)]
    out = torch.empty_like(pairs[0][0])
    with precision(numerics):
        timing = time_graph([lambda a=a, b=b: torch.mm(a, b, out=out) for a, b in pairs])  # type: ignore[misc]
    return _rate(2.0 * side**3, timing)


def _copy(size: int, times: int) -> float | None:
    """The better of the driver's copy and of a kernel that reads and writes as much."""
    source = torch.randint(-128, 127, (size,), dtype=torch.int8, device=this_device()).view(torch.int32)
    target = torch.empty_like(source)
    ways: list[Step] = [lambda: target.copy_(source), lambda: torch.bitwise_not(source, out=target)]
    rates = [_rate(2.0 * size, time_graph([way] * times)) for way in ways]
    return max((rate for rate in rates if rate is not None), default=None)
