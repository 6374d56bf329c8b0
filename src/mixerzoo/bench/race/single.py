"""``mixerzoo bench --model ...``: one model against its peers, at one batch size or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixerzoo.bench.race.plan import check_dtype, field_of, plan_races
from mixerzoo.bench.race.runner import Say
from mixerzoo.bench.race.several import open_report, run_all
from mixerzoo.bench.race.terms import Device


@dataclass(frozen=True)
class SingleRace:
    """What was asked for; see ``mixerzoo bench --help``."""

    model: str
    batch_sizes: Sequence[int]
    dtype: str
    device: Device
    peers: Sequence[str] | None
    threads: int | None
    rounds: int
    out: Path


def race_once(request: SingleRace, say: Say) -> bool:
    """Race one model.

    Args:
        request: What to race.
        say: Receives each line of progress and the tables.

    Returns:
        Whether ours ran and computed what it should at every batch size.

    Raises:
        MixerzooError: A name is unknown, a number cannot be used, or the folder holds results of that name.
    """
    dtype, device = check_dtype(request.dtype), request.device
    field = field_of(dtype, device, request.peers)
    races = plan_races(request.model, request.batch_sizes, device, field, request.threads, request.rounds)
    report = open_report(request.out, f"race-{request.model}-{dtype}-{device}", races[0], say)
    results = run_all(races, field, report, say)
    report.finish(say)
    return all(result.lanes[0].counts for result in results)
