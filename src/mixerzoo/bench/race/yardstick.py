"""The worker beside the contenders: writes what they share, and multiplies plain matrices in every round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mixerzoo.bench.gpu import ceilings
from mixerzoo.bench.race.models import write_common
from mixerzoo.bench.race.terms import Device, Dtype
from mixerzoo.bench.race.timing import Step, time_round
from mixerzoo.bench.race.worker import task_of
from mixerzoo.bench.workers.serving import Handle, guarded, serve_standard_input

SIDES: dict[Device, int] = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices: large enough for the best rate."""

_PAIRS = 2  # of random matrices that take turns
_UNSIGNED_ZERO = 128


class Yardstick:
    """Answers ``prepare``, ``round`` and ``ceilings``."""

    def __init__(self) -> None:
        self._products: dict[tuple[Dtype, Device], list[Step]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says."""
        if request["do"] == "ceilings":
            return {"rates": ceilings.measure()}
        if request["do"] == "prepare":
            task = task_of(request)
            torch.set_num_threads(task.threads)
            write_common(task)
            return {}
        dtype, device = request["dtype"], request["device"]
        if (dtype, device) not in self._products:
            self._products[dtype, device] = fastest_product(dtype, device, SIDES[device])
        with torch.inference_mode():
            calls, seconds = time_round(self._products[dtype, device], device, request["seconds"])
        return {"calls": calls, "rate": 2.0 * SIDES[device] ** 3 / seconds}


def fastest_product(dtype: Dtype, device: Device, side: int) -> list[Step]:
    """A square product in a dtype by whichever of PyTorch's ways is the fastest here, on several random matrices.

    Args:
        dtype: How it runs.
        device: Where.
        side: Rows and columns of both matrices.
    """
    ways = [list(steps) for steps in zip(*(_products(dtype, device, side) for _ in range(_PAIRS)), strict=True)]
    if len(ways) == 1:
        return ways[0]
    with torch.inference_mode():
        return min(ways, key=lambda steps: time_round(steps, device, 0.1)[1])


def _products(dtype: Dtype, device: Device, side: int) -> Iterator[Step]:
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    if dtype in ("fp32", "bf16"):
        kind = torch.float32 if dtype == "fp32" else torch.bfloat16
        x, y = a.to(kind), b.to(kind)
        yield lambda: torch.mm(x, y)
    elif dtype == "fp8":
        eight, nine = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()  # the second one in columns
        scale = torch.ones((), device=device)
        yield lambda: torch._scaled_mm(eight, nine, scale, scale, out_dtype=torch.bfloat16, use_fast_accum=True)
    else:
        signed, other = ((30 * t).round().clamp(-127, 127).to(torch.int8) for t in (a, b))
        other = other.t().contiguous().t() if device == "cuda" else other
        yield lambda: torch._int_mm(signed, other)
        if device == "cpu" and hasattr(torch.ops.onednn, "qlinear_pointwise"):
            yield _onednn_product((signed.int() + _UNSIGNED_ZERO).to(torch.uint8), other)


def _onednn_product(unsigned: torch.Tensor, signed: torch.Tensor) -> Step:
    """oneDNN's product of unsigned by signed bytes with a bfloat16 result, as a quantised linear layer runs it."""
    columns = signed.shape[1]
    packed = torch.ops.onednn.qlinear_prepack(signed, list(unsigned.shape))
    scales, zeros = torch.full((columns,), 1e-3), torch.zeros(columns, dtype=torch.int64)
    no_bias, output = None, (1.0, 0, torch.bfloat16)
    nothing_after: tuple[str, list[float], str] = ("none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(
        unsigned, 1e-3, _UNSIGNED_ZERO, packed, scales, zeros, no_bias, *output, *nothing_after
    )


def _handler() -> Handle:
    return guarded(Yardstick().answer)


if __name__ == "__main__":
    serve_standard_input(_handler)
