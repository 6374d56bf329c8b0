"""What a run comes to, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mixerzoo.bench.gpu.cases import Result

_BEST_TILES = 5


def summary(results: Sequence[Result], rehearsal: bool) -> str:
    """Counts, every failed case on one line, and a table of what was timed."""
    counts = Counter(result.status for result in results)
    lines = [", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "not run"))]
    lines += [
        f"  failed{'' if result.counts_as_failure else ', as it may'}: {one_line(result)}"
        for result in results
        if result.status == "failed"
    ]
    left = [result for result in results if result.status == "not run"]
    if left:
        lines.append(f"  not run, because {left[0].failures[0]}: from {left[0].label!r} to {left[-1].label!r}")
    lines += _ceilings(results) + _contenders(results) + _tiles(results)
    if rehearsal:
        lines.append("This was a rehearsal in the interpreter: times mean nothing.")
    return "\n".join(lines)


def one_line(result: Result) -> str:
    """A result with its reasons, cut to what fits on a screen."""
    reasons = "; ".join(" ".join(reason.split()) for reason in result.failures)
    return result.label + (f": {reasons[:300]}" if reasons else "")


def _ceilings(results: Iterable[Result]) -> list[str]:
    found = next((r.measured["rates"] for r in results if r.case.get("kind") == "ceilings" and r.measured), None)
    if found is None or "traceback" in found:
        return []
    units = {"copy": "TB/s", "l2": "TB/s"}
    return [
        "ceilings: " + ", ".join(f"{name} {_number(rate)} {units.get(name, 'TFLOP/s')}" for name, rate in found.items())
    ]


def _median(result: Result) -> float:
    median = result.measured.get("median us")
    return float("inf") if median is None else float(median)


def _timed(results: Iterable[Result], kind: str) -> list[Result]:
    return [r for r in results if r.case.get("kind") == kind and r.status == "passed" and "median us" in r.measured]


def _contenders(results: Iterable[Result]) -> list[str]:
    """Per problem the contenders, fastest first."""
    lines: list[str] = []
    for problem, group in _grouped(_timed(results, "contender"), ("variant", "op", "mode")):
        compiled = next((_median(r) for r in group if r.case["contender"] == "reference compiled"), None)
        lines += [
            f"{' '.join(problem)}, batch {group[0].case['images']}, floor {_number(group[0].measured['floor us'])} us"
        ]
        lines += [
            f"  {result.case['contender']:28}{_figures(result)}{_against(compiled, result)}"
            for result in sorted(group, key=_median)
        ]
    return lines


def _tiles(results: Iterable[Result]) -> list[str]:
    """Per kernel the fastest tiles."""
    lines: list[str] = []
    for problem, group in _grouped(_timed(results, "tile"), ("variant", "kernel")):
        lines.append(
            f"{' '.join(problem)}: the fastest of {len(group)} tiles, floor {_number(group[0].measured['floor us'])} us"
        )
        best = sorted(group, key=_median)[:_BEST_TILES]
        lines += [f"  {'x'.join(map(str, result.case['tile'])):28}{_figures(result)}" for result in best]
    return lines


def _grouped(results: Iterable[Result], keys: tuple[str, ...]) -> list[tuple[tuple[str, ...], list[Result]]]:
    """By what these entries of their cases say, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(str(result.case[key]) for key in keys), []).append(result)
    return list(groups.items())


def _figures(result: Result) -> str:
    measured = result.measured
    share = measured["share of floor"]
    percent = "-" if share is None else f"{100 * share:.0f} %"
    return f"{_number(measured['median us']):>10} us  +-{_number(measured['spread us']):>8}  {percent:>6} of the floor"


def _against(compiled: float | None, result: Result) -> str:
    if compiled is None or result.measured["median us"] is None:
        return ""
    return f"  {compiled / _median(result):5.2f}x the compiled reference"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    number = float(value)
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
