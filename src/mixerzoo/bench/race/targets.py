"""Targets and whether a run met them. What is not measured is never met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mixerzoo.bench.folder import FolderRace
from mixerzoo.bench.load import LoadRaces
from mixerzoo.bench.race.results import RaceResult
from mixerzoo.bench.race.terms import Dtype


@dataclass(frozen=True)
class Target:
    """A target beside what was measured.

    Attributes:
        what: Of what.
        wanted: The bound.
        measured: The figure; None if there is none.
        unit: Behind both figures.
        at_most: Whether the bound is one from above.
        remark: What else a reader must know.
        failed: Whether there is no figure because ours failed.
        incomplete: Whether a rival is missing whose figure might have been better.
    """

    what: str
    wanted: float
    measured: float | None
    unit: str = "x"
    at_most: bool = False
    remark: str = ""
    failed: bool = False
    incomplete: bool = False

    @property
    def verdict(self) -> Literal["met", "met by those present", "NOT met", "not measured"]:
        """Whether the figure is on the right side of the bound."""
        if self.measured is None:
            return "NOT met" if self.failed else "not measured"
        met = self.measured <= self.wanted if self.at_most else self.measured >= self.wanted
        if not met:
            return "NOT met"
        return "met by those present" if self.incomplete else "met"

    def __str__(self) -> str:
        """One line."""
        sign = "<=" if self.at_most else ">="
        figure = "-" if self.measured is None else f"{self.measured:.4g}{self.unit}"
        remark = f" ({self.remark})" if self.remark else ""
        return f"{self.verdict:12}  {self.what}: {figure}, wanted {sign} {self.wanted:g}{self.unit}{remark}"


def against(
    result: RaceResult, rivals: Iterable[tuple[str, Dtype]], wanted: float, *, time: bool = False, remark: str = ""
) -> Target:
    """Ours against the fastest of several rivals.

    Args:
        result: The race.
        rivals: Names and dtypes. One that is not there is named.
        wanted: The smallest ratio of our speed over theirs; with ``time`` the largest of our time over theirs.
        time: Whether the target is one of time.
        remark: What a reader must know.
    """
    lanes = {f"{name} {dtype}": result.lane(name, dtype) for name, dtype in rivals}
    ratios = {label: None if lane is None else result.ratio(lane) for label, lane in lanes.items()}
    found = {label: ratio for label, ratio in ratios.items() if ratio is not None}
    absent = [label for label in lanes if label not in found]
    remark = "; ".join(filter(None, [remark, f"without {', '.join(absent)}" if absent else ""]))
    if not found:
        return _of(result, f"over {' and '.join(lanes)}", wanted, None, at_most=time, remark=remark)
    best = min(found, key=lambda label: found[label])
    measured = 1 / found[best] if time else found[best]
    fastest = ", the fastest" if len(found) > 1 else ""
    target = _of(
        result, f"{'time ' if time else ''}over {best}{fastest}", wanted, measured, at_most=time, remark=remark
    )
    return replace(target, incomplete=bool(absent))


def share_of_products(result: RaceResult, percent: float) -> Target:
    """Ours against the rate of a plain product of the same dtype."""
    share = result.share_of_products(result.lanes[0])
    return _of(result, "of the GEMM rate", percent, None if share is None else 100 * share, unit=" %")


def share_of_floor(result: RaceResult, floor: float | None, percent: float) -> Target:
    """Ours against the least time that measured rates allow.

    Args:
        result: The race.
        floor: Seconds; None if the rates are not known.
        percent: What is wanted.
    """
    median = result.lanes[0].median
    measured = None if floor is None or median is None else 100 * floor / median
    remark = "" if floor is None else f"the floor is {1e3 * floor:.2f} ms"
    return _of(result, "of the floor", percent, measured, unit=" %", remark=remark)


def memory(result: RaceResult, rival: tuple[str, Dtype], wanted: float) -> Target:
    """Our peak memory over a rival's."""
    ours, theirs = result.lanes[0].memory, result.lane(*rival)
    measured = ours / theirs.memory if ours and theirs is not None and theirs.memory else None
    return _of(result, f"peak memory over {' '.join(rival)}", wanted, measured, at_most=True)


def _of(
    result: RaceResult,
    what: str,
    wanted: float,
    measured: float | None,
    *,
    unit: str = "x",
    at_most: bool = False,
    remark: str = "",
) -> Target:
    """A target of ours in a race; without ours it is missed."""
    ours = result.lanes[0]
    title = f"{result.race.title}: {ours.entry.label} {what}"
    figure = measured if ours.counts else None
    return Target(title, wanted, figure, unit, at_most, remark, failed=not ours.counts)


def loading(races: LoadRaces, wanted: float) -> Sequence[Target]:
    """Creating and loading, each with the ratio up to the first prediction beside it."""
    return [
        Target(
            f"{name}: create and load a local file, timm over ours",
            wanted,
            races.create_ratio(name),
            remark=f"up to the first prediction {races.first_ratio(name):.1f}x",
        )
        for name in races.loading
    ]


def from_files(race: FolderRace, percent: float) -> Target:
    """Files to predictions, of the slower of decoding alone and the model alone."""
    return Target("a folder of JPEG files to predictions", percent, 100 * race.share, " %", remark=str(race))


def importing(races: LoadRaces, wanted: float) -> Target:
    """Seconds of the import beyond torch and timm."""
    what = "import mixerzoo, beyond importing torch and timm"
    return Target(what, wanted, races.import_overhead, " s", at_most=True)
