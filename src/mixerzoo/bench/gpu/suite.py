"""The parent of the parts about operations: plans a part, has workers run it, writes down every result as it comes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mixerzoo.bench.circumstances import gpu_circumstances
from mixerzoo.bench.gpu import correctness, ops
from mixerzoo.bench.gpu.cases import Case, Result
from mixerzoo.bench.gpu.pool import GRACE, run_cases
from mixerzoo.bench.gpu.record import record_correctness, record_fastest
from mixerzoo.bench.gpu.request import Request
from mixerzoo.bench.gpu.summary import one_line, summary
from mixerzoo.errors import ConfigError
from mixerzoo.ops.backends.triton import interpreted
from mixerzoo.ops.cards import CARDS

OPERATION_PARTS = {
    "correctness": (correctness.cases, correctness.__name__),
    "ops": (ops.cases, ops.__name__),
    "tiles": (ops.tile_cases, ops.__name__),
}
"""What each part runs, and the module that a worker runs it with."""

_MOST_WORKERS = 6  # compiling keeps a core busy, and the card has memory for as many contexts


def run_suite(request: Request, say: Callable[[str], object]) -> bool:
    """Run a part about operations on the CUDA device, or rehearse it on the CPU under ``TRITON_INTERPRET=1``.

    Args:
        request: What to run.
        say: Receives each line of progress and the summary.

    Returns:
        Whether no case failed.

    Raises:
        ConfigError: No case matches, or a rehearsal or a selection of cases is to be recorded.
    """
    rehearsal = interpreted()
    _check(request, rehearsal)
    plan, worker = OPERATION_PARTS[request.part]
    planned = [case for case in plan(rehearsal) if _wanted(case, request.match)]
    if all(request.match not in case["label"] for case in planned):
        raise ConfigError(f"No case of the part {request.part!r} has {request.match!r} in its label.")
    _claim(request)
    about = gpu_circumstances() | {"part": request.part, "rehearsal": str(rehearsal)}
    if rehearsal:
        say("rehearsal in the interpreter: times mean nothing")
    say("  ".join(f"{key} {value}" for key, value in about.items()))
    workers = _workers() if request.part == "correctness" and not rehearsal else 1
    results = _run(request, worker, planned, workers, about, say)
    say(summary(results, rehearsal))
    if request.record:
        say(_record(request, results, about))
    say(f"written to {request.out / f'gpu-{request.part}.json'}")
    return not any(result.counts_as_failure for result in results)


def _check(request: Request, rehearsal: bool) -> None:
    if request.record and rehearsal:
        raise ConfigError("A rehearsal in the interpreter proves nothing about a card: leave --record out.")
    if request.record and request.part == "tiles":
        raise ConfigError("Tiles are chosen in the package's source, by hand: leave --record out.")
    if request.record and request.match:
        raise ConfigError("A card is recorded from a whole part: leave --match out, or --record.")


def _claim(request: Request) -> None:
    """Make sure that results can be written, and that none are there."""
    results = request.out / f"gpu-{request.part}.jsonl"
    if results.exists():
        raise ConfigError(f"{results} holds the results of an earlier run: give another folder with --out.")
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        results.touch()
    except OSError as error:
        raise ConfigError(f"{results} cannot be written ({error.strerror}): give another folder with --out.") from None


def _wanted(case: Case, match: str) -> bool:
    return match in case["label"] or case["kind"] == "ceilings"


def _workers() -> int:
    return min(max((os.cpu_count() or 1) // 2, 1), _MOST_WORKERS)


def _run(
    request: Request,
    module: str,
    planned: Sequence[Case],
    workers: int,
    about: dict[str, Any],
    say: Callable[[str], object],
) -> list[Result]:
    """Run the cases; every result is on disk before the next one is."""
    done = 0
    with (request.out / f"gpu-{request.part}.jsonl").open("w") as lines:

        def write(entry: dict[str, Any]) -> None:
            lines.write(json.dumps(entry) + "\n")
            lines.flush()

        def finished(result: Result) -> None:
            nonlocal done
            done += 1
            write(asdict(result))
            if result.status != "not run":
                say(f"[{done}/{len(planned)}] {result.status} {result.seconds:6.1f} s  {one_line(result)}")

        write({"circumstances": about})
        seconds = max(60 * request.minutes - GRACE, 30 * request.minutes)  # leave the last case time to end
        results = run_cases(module, planned, finished, seconds=seconds, workers=workers)
    everything = {"circumstances": about, "results": [asdict(result) for result in results]}
    (request.out / f"gpu-{request.part}.json").write_text(json.dumps(everything, indent=1) + "\n")
    return results


def _record(request: Request, results: Sequence[Result], about: dict[str, Any]) -> str:
    """Enter the card, and leave a copy of the table beside the results."""
    enter = record_correctness if request.part == "correctness" else record_fastest
    outcome = enter(results, about["gpu"], about)
    shutil.copy(CARDS, request.out / "cards.json")
    return outcome
