"""A race as text, within 120 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixerzoo.bench.race.results import Lane, RaceResult

_CUT = 300  # letters of a failure


def table(result: RaceResult) -> str:
    """One row for each contender, then who is missing and why.

    "ours is" says how many times as fast as the contender ours is, "of GEMM" what share of the rate of a plain matrix
    product of the same dtype, measured in the same rounds, its own products reach.
    """
    race = result.race
    rounds = f"median of {len(result.lanes[0].seconds)} rounds"
    threads = f", {race.parallelism}" if race.device == "cpu" else ""
    memory = any(lane.memory for lane in result.lanes)
    columns = _COLUMNS if memory else _COLUMNS[:-1]
    rows = [[title for title, _ in columns]]
    rows += [[show(result, lane) for _, show in columns] for lane in result.lanes]
    return "\n".join([f"{race.title}{threads}, {rounds}", *_aligned(rows), *_notes(result)])


def number(value: float | None, suffix: str = "") -> str:
    """Three or four significant figures; a dash for what is not there."""
    if value is None:
        return "-"
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}{suffix}"


def _milliseconds(result: RaceResult, lane: Lane) -> str:  # noqa: ARG001  # a column sees the whole race
    return "-" if lane.median is None else number(1e3 * lane.median)


def _ratio(result: RaceResult, lane: Lane) -> str:
    return "ours" if lane is result.lanes[0] else number(result.ratio(lane), "x")


def _share(result: RaceResult, lane: Lane) -> str:
    share = result.share_of_products(lane)
    return "-" if share is None else f"{100 * share:.1f} %"


_COLUMNS: Sequence[tuple[str, Callable[[RaceResult, Lane], str]]] = (
    ("contender", lambda _, lane: lane.entry.contender),
    ("dtype", lambda _, lane: lane.entry.dtype),
    ("batch", lambda result, _: str(result.race.batch_size)),
    ("ms", _milliseconds),
    ("images/s", lambda result, lane: number(result.images_per_second(lane))),
    ("ours is", _ratio),
    ("of GEMM", _share),
    ("error", lambda _, lane: "-" if lane.error is None else f"{lane.error:.1e}"),
    ("memory", lambda _, lane: "-" if lane.memory is None else f"{lane.memory / 2**30:.2f} GiB"),
)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first two columns to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _notes(result: RaceResult) -> list[str]:
    lines = [f"  note: {lane.entry.note}" for lane in result.lanes if lane.entry.note]
    lines += [f"  WRONG: {lane.entry.label} {lane.wrong}" for lane in result.lanes if lane.wrong]
    lines += [f"  failed: {lane.entry.label}: {lane.failure[:_CUT]}" for lane in result.lanes if lane.failure]
    lines += [f"  left out: {reason}" for reason in result.skipped]
    return lines + [f"  {remark}" for remark in result.remarks]
