"""Races one after the other, each on disk before the next one starts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mixerzoo.bench.circumstances import race_circumstances
from mixerzoo.bench.race.contenders import CONTENDERS
from mixerzoo.bench.race.plan import Field
from mixerzoo.bench.race.report import Report
from mixerzoo.bench.race.results import RaceResult
from mixerzoo.bench.race.runner import Say, run_race
from mixerzoo.bench.race.table import table
from mixerzoo.bench.race.terms import Race

OUT_OF_MEMORY = "OutOfMemoryError"
"""Part of a worker's answer when a card has too little memory."""


def open_report(out: Path, stem: str, race: Race, say: Say) -> Report:
    """Claim the files of a run and say its circumstances.

    Raises:
        ConfigError: They are there, or cannot be written.
    """
    about = race_circumstances(race.device, race.threads, _packages())
    report = Report(out, stem, about)
    say("  ".join(f"{key} {value}" for key, value in about.items()))
    return report


def run_all(
    races: Iterable[Race], field: Field, report: Report, say: Say, deadline: float = float("inf")
) -> list[RaceResult]:
    """Run races one after the other and name those for which there is no time.

    Args:
        races: What is raced.
        field: Who was asked to take part.
        report: Receives each result.
        say: Receives each line of progress and the tables.
        deadline: By ``time.monotonic()``, when nothing new starts.
    """
    left, results = [], []
    for race in races:
        if time.monotonic() >= deadline:
            left.append(race.title)
            continue
        result = _without_running_out(race, say, deadline)
        if result.cut_short and not result.lanes[0].counts:
            left.append(race.title)  # nobody failed: there was no time for it
            continue
        result.skipped += field.skipped
        report.add(result)
        say(table(result))
        results.append(result)
    if left:
        report.add_left(left)
        say(f"not run, because time was up: {'; '.join(left)}")
    return results


def _without_running_out(race: Race, say: Say, deadline: float) -> RaceResult:
    """Run a race, with half the batch for all as long as memory runs out for one."""
    result = run_race(race, say, deadline)
    short = [lane.entry.label for lane in result.lanes if OUT_OF_MEMORY in (lane.failure or "")]
    if not short or race.batch_size == 1 or time.monotonic() >= deadline:
        return result
    remark = f"batch {race.batch_size} was too much memory together for {', '.join(short)}: half of it for all"
    say(f"  {remark}")
    smaller = _without_running_out(replace(race, batch_size=race.batch_size // 2), say, deadline)
    smaller.remarks.insert(0, remark)
    return smaller


def _packages() -> list[str]:
    """What contenders import, those that are not installed included."""
    contenders = [contender for _, contender in CONTENDERS.values()]
    return list(dict.fromkeys(p for c in contenders for p in (*c.packages, *filter(None, [c.quantiser]))))
