"""Cases on their way through worker processes: those that die or hang are replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mixerzoo.bench.gpu.cases import LIMIT, Case, Result
from mixerzoo.bench.workers.process import Worker, WorkerLost

WORKER = "mixerzoo.bench.gpu.worker"

GRACE = 60.0
"""Seconds that a case may go on beyond the deadline before which it was started."""


class _Run:
    """Cases on their way through several workers."""

    def __init__(self, module: str, cases: Sequence[Case], deadline: float, finished: Callable[[Result], None]):
        self._module, self._deadline, self._finished = module, deadline, finished
        self._left = list(reversed(cases))
        self._carried: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.results: list[Result] = []

    def drain(self) -> None:
        """Take case after case until there is none left or time is up."""
        worker: Worker | None = None
        try:
            while (case := self._next()) is not None:
                start = time.monotonic()
                try:
                    worker = worker or Worker(WORKER, self._module)
                    limit = min(case.get("limit", LIMIT), self._deadline + GRACE - start)
                    answer = worker.ask(case | self._carried, limit)
                except WorkerLost as error:
                    answer = {"failures": [str(error)], "measured": {}, "carry": {}, "last": True}
                if answer["last"] and worker is not None:
                    worker.close()
                    worker = None
                self._record(case, answer, time.monotonic() - start)
        finally:
            if worker is not None:
                worker.close()

    def stop(self) -> list[Case]:
        """Start no more cases; return those that were left."""
        with self._lock:
            left, self._left = self._left, []
        return left[::-1]

    def _next(self) -> Case | None:
        with self._lock:
            return self._left.pop() if self._left and time.monotonic() < self._deadline else None

    def _record(self, case: Case, answer: dict[str, Any], seconds: float) -> None:
        status = "failed" if answer["failures"] else "passed"
        result = Result(case, status, round(seconds, 3), answer["failures"], answer["measured"])
        with self._lock:
            self._carried |= answer["carry"]
            self.results.append(result)
            self._finished(result)


def run_cases(
    module: str, cases: Sequence[Case], finished: Callable[[Result], None], *, seconds: float, workers: int = 1
) -> list[Result]:
    """Run cases in order, each in one of several worker processes.

    Args:
        module: Name of a module that workers can import, with a function ``run_case``.
        cases: The most valuable first; they start in this order.
        finished: Called with every result as soon as it is there, those not run at the end; never twice at once.
        seconds: No case starts later than this from now.
        workers: Processes at a time.

    Returns:
        A result for every case, in the order in which they finished.
    """
    run = _Run(module, cases, time.monotonic() + seconds, finished)
    with ThreadPoolExecutor(workers) as threads:
        try:
            for thread in [threads.submit(run.drain) for _ in range(workers)]:
                thread.result()
        finally:
            left = run.stop()
    for case in left:
        result = Result(case, "not run", failures=["time was up"])
        run.results.append(result)
        finished(result)
    return run.results
