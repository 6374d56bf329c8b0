"""Device time of calls: medians of CUDA-graph replays, or of events around whole iterations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch

from mixerzoo.ops.backends.triton import interpreted

Step: TypeAlias = Callable[[], object]

_WARM_UP = 3
_SECONDS = 0.25  # of measuring, within the bounds of repeats
_REPEATS = (12, 100)


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call; None in a rehearsal, where times mean nothing.

    Attributes:
        median: Median over the repeats.
        spread: From the 10th to the 90th percentile.
        repeats: Number of repeats, each of which goes once through all copies of the inputs.
        method: ``"graph"`` or ``"events"``.
    """

    median: float | None
    spread: float | None
    repeats: int
    method: str


def copies_for(bytes_each: int) -> int:
    """Copies of the inputs to rotate through, so that together they are four times the L2 cache: 2 to 32."""
    if interpreted():
        return 2
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return min(max(-(-4 * cache // max(bytes_each, 1)), 2), 32)


def time_graph(steps: Sequence[Step]) -> Timing:
    """Time steps by replaying one CUDA graph that holds each of them once: no launch is waited for.

    Args:
        steps: The same call on different inputs; the time is for one of them.
    """
    if interpreted():
        return _rehearsed(steps, "graph")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in steps[:_WARM_UP]:
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            step()
    return _timed(graph.replay, len(steps), "graph")


def time_events(steps: Sequence[Step]) -> Timing:
    """Time steps between events, launches and the host's work included where the device waits for them.

    Args:
        steps: The same call on different inputs; the time is for one of them.
    """
    if interpreted():
        return _rehearsed(steps, "events")

    def once() -> None:
        for step in steps:
            step()

    return _timed(once, len(steps), "events")


def _rehearsed(steps: Sequence[Step], method: str) -> Timing:
    for step in steps:
        step()
    return Timing(None, None, 1, method)


def _timed(once: Step, calls: int, method: str) -> Timing:
    for _ in range(_WARM_UP):
        once()
    estimate = max(_elapsed(once, 2)[1], 1e-3)
    for _ in range(min(int(_SECONDS * 1e3 / estimate), _REPEATS[1])):  # until clocks are those of steady work
        once()
    repeats = min(max(int(_SECONDS * 1e3 / estimate), _REPEATS[0]), _REPEATS[1])
    times = sorted(1e3 * milliseconds / calls for milliseconds in _elapsed(once, repeats))
    tenths = statistics.quantiles(times, n=10)
    return Timing(statistics.median(times), tenths[-1] - tenths[0], repeats, method)


def _elapsed(once: Step, repeats: int) -> list[float]:
    """Milliseconds of each of several runs in a row."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        once()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in pairwise(marks)]
