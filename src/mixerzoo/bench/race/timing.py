"""Time of a call within one round: by the clock on the CPU, by CUDA events on a card."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import TypeAlias

import torch

from mixerzoo.bench.race.terms import Device

Step: TypeAlias = Callable[[], object]

_FEWEST = 2  # calls of a round


def time_round(steps: Sequence[Step], device: Device, seconds: float, *, each: bool = False) -> tuple[int, float]:
    """Run steps one after the other, again and again, after an uncounted one.

    Args:
        steps: The same call on different inputs.
        device: Where they run.
        seconds: How long, or two calls if that is longer.
        each: On a card, wait for each call before the next one: latency instead of throughput.

    Returns:
        Number of calls and seconds of one.
    """
    steps[-1]()  # caches and clocks are another contender's
    return _by_events(steps, seconds, each) if device == "cuda" else _by_clock(steps, seconds)


def _by_clock(steps: Sequence[Step], seconds: float) -> tuple[int, float]:
    calls, start = 0, time.perf_counter()
    elapsed = 0.0
    for step in cycle(steps):
        step()
        calls += 1
        elapsed = time.perf_counter() - start
        if calls >= _FEWEST and elapsed >= seconds:
            break
    return calls, elapsed / calls


def _by_events(steps: Sequence[Step], seconds: float, each: bool) -> tuple[int, float]:
    estimate = max(_elapsed(steps, _FEWEST, each) / _FEWEST, 1e-6)
    calls = max(int(seconds / estimate), _FEWEST)
    return calls, _elapsed(steps, calls, each) / calls


def _elapsed(steps: Sequence[Step], calls: int, each: bool) -> float:
    """Seconds of several calls on the card; the host's work counts where the card waits for it."""
    some = islice(cycle(steps), calls)
    if each:
        return sum(_between(step) for step in some)
    return _between(lambda: [step() for step in some])


def _between(step: Step) -> float:
    """Seconds from before a step to after it on a card that is idle before it."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
