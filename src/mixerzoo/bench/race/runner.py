"""The parent of a race: has every contender get ready in a worker of its own, then asks them in turn."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from mixerzoo.bench.race.results import Lane, RaceResult
from mixerzoo.bench.race.terms import Dtype, Entry, Race, Task
from mixerzoo.bench.workers.process import Worker, WorkerLost

CONTENDER = "mixerzoo.bench.race.worker"
YARDSTICK = "mixerzoo.bench.race.yardstick"

Say: TypeAlias = Callable[[str], object]

_PREPARE_LIMIT = 300.0
_GRACE = 30.0
_TIME_UP = "time was up before it was ready"


def run_race(race: Race, say: Say, deadline: float = float("inf")) -> RaceResult:
    """Run a race.

    Args:
        race: What is raced.
        say: Receives a line for each step.
        deadline: By ``time.monotonic()``, when nothing new starts.

    Returns:
        The result; a contender that dies or hangs is a line of it.
    """
    say(race.title)
    with tempfile.TemporaryDirectory(prefix="mixerzoo-race-") as folder, contextlib.ExitStack() as ends:
        run = _Run(race, Path(folder), say, deadline, ends)
        if run.prepare():
            run.build()
            run.take_turns()
        return run.result


class _Run:
    """A race on its way."""

    def __init__(self, race: Race, folder: Path, say: Say, deadline: float, ends: contextlib.ExitStack):
        self._race, self._folder, self._say, self._deadline, self._ends = race, folder, say, deadline, ends
        self._turns = race.rounds * (len(race.entries) + 1) * 2 * race.seconds  # seconds that the rounds will take
        self._yardstick: Worker | None = None
        self._workers: dict[int, Worker] = {}
        self.result = RaceResult(race, [Lane(entry) for entry in race.entries])

    def prepare(self) -> bool:
        """Start everybody, and have weights and reference written."""
        request = {"do": "prepare", "task": self._task("fp32")}
        self._yardstick = self._start(YARDSTICK)
        self._workers = {i: self._start(CONTENDER) for i in range(len(self._race.entries))}
        try:
            limit = self._within(_PREPARE_LIMIT)
            failure = self._yardstick.ask(request, limit, "writing the reference").get("failure")
        except WorkerLost as error:
            failure = str(error)
        for lane in self.result.lanes if failure else []:
            lane.failure = f"there is no reference to compare with: {failure}"
        return failure is None

    def build(self) -> None:
        """Have the contenders get ready, one after the other."""
        for i, lane in enumerate(self.result.lanes):
            limit = min(self._race.build_limit, self._deadline - self._turns - time.monotonic())
            if limit <= 0:
                lane.failure, self.result.cut_short = _TIME_UP, True
                self._drop(i)
                continue
            answer = self._ask_to_build(i, lane.entry, limit)
            lane.failure = answer.get("failure")
            if lane.failure is not None and time.monotonic() >= self._deadline - self._turns:
                lane.failure, self.result.cut_short = _TIME_UP, True
            if lane.failure is None:
                lane.build_seconds, lane.error = answer["build_seconds"], float(answer["error"])
                lane.says, lane.memory = answer["says"], answer["memory"]
            self._say(f"  {lane.entry.label}: {_became(lane)}")

    def take_turns(self) -> None:
        """Ask the contenders in turn, round after round, and the yardstick at the end of each."""
        for number in range(self._race.rounds):
            if not self._workers or time.monotonic() >= self._deadline:
                break
            lanes = list(enumerate(self.result.lanes))
            first = number % len(lanes)  # nobody always runs behind the same neighbour
            for i, lane in lanes[first:] + lanes[:first]:
                lane.seconds.append(self._one_round(i, lane))
            for dtype in dict.fromkeys(lane.entry.dtype for lane in self.result.lanes):
                self.result.products.setdefault(dtype, []).append(self._product(dtype))
            self._say(f"  round {number + 1} of {self._race.rounds}")
        done = len(self.result.lanes[0].seconds)
        if self._workers and done < self._race.rounds:
            self.result.remarks.append(f"time was up after {done} of {self._race.rounds} rounds")

    def _ask_to_build(self, number: int, entry: Entry, limit: float) -> dict[str, Any]:
        request = {
            "do": "build",
            "module": entry.module,
            "contender": entry.contender,
            "training": self._race.training,
            "task": self._task(entry.dtype),
        }
        try:
            answer = self._workers[number].ask(request, limit, "getting ready")
        except WorkerLost as error:
            answer = {"failure": str(error)}
        if "failure" in answer:
            self._drop(number)
        return answer

    def _one_round(self, number: int, lane: Lane) -> float | None:
        worker = self._workers.get(number)
        if worker is None:
            return None
        request = {"do": "round", "seconds": self._race.seconds}
        try:
            answer = worker.ask(request, self._within(self._race.round_limit), "in a round")
        except WorkerLost as error:
            answer = {"failure": str(error)}
        lane.failure = answer.get("failure")
        if lane.failure is not None:
            self._drop(number)
            return None
        return float(answer["seconds"])

    def _product(self, dtype: Dtype) -> float | None:
        if self._yardstick is None:
            return None
        request = {"do": "round", "dtype": dtype, "device": self._race.device, "seconds": self._race.seconds}
        try:
            answer = self._yardstick.ask(request, self._within(self._race.round_limit), "multiplying matrices")
        except WorkerLost as error:
            self._yardstick.close()
            self._yardstick = None
            answer = {"failure": str(error)}
        if "failure" in answer:
            remark = f"no rate of a plain {dtype} product: {answer['failure']}"
            self.result.remarks += [] if remark in self.result.remarks else [remark]
            return None
        return float(answer["rate"])

    def _within(self, limit: float) -> float:
        """A limit in seconds, and no more than a little beyond the deadline."""
        return min(limit, max(self._deadline - time.monotonic(), 0.0) + _GRACE)

    def _start(self, program: str) -> Worker:
        threads = str(self._race.threads)
        worker = Worker(program, environment={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
        self._ends.callback(worker.close)
        return worker

    def _drop(self, number: int) -> None:
        """End a worker, so that what is left of it disturbs nobody."""
        worker = self._workers.pop(number, None)
        if worker is not None:
            worker.close()

    def _task(self, dtype: Dtype) -> dict[str, Any]:
        race = self._race
        task = Task(race.model, race.batch_size, dtype, race.device, race.threads, self._folder)
        return asdict(task) | {"folder": str(self._folder)}


def _became(lane: Lane) -> str:
    if lane.failure is not None:
        return lane.failure[:300]
    if lane.wrong is not None:
        return lane.wrong
    return f"ready after {lane.build_seconds:.1f} s, error {lane.error:.1e}"
