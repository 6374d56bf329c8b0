"""Worker processes as the parent sees them: ask, wait no longer than a limit, replace those that die."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mixerzoo.bench.gpu.cases import LIMIT, Case, Result

START_LIMIT = 180.0
"""Seconds a worker may take to import what it needs."""

GRACE = 60.0
"""Seconds that a case may go on beyond the deadline before which it was started."""


class WorkerLost(Exception):  # noqa: N818  # it says what happened
    """A worker that died or did not answer in time; the message says which, with its last words."""


class Worker:
    """One worker process, started at once.

    Args:
        module: See :mod:`mixerzoo.bench.gpu.worker`.

    Raises:
        WorkerLost: It does not become ready.
    """

    def __init__(self, module: str):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close()
        command = [sys.executable, "-m", "mixerzoo.bench.gpu.worker", module]
        self._process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # so that the compilers it starts end with it
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._answer(START_LIMIT, "starting")
        except WorkerLost:
            self.close()
            raise

    def ask(self, case: Case, limit: float) -> dict[str, Any]:
        """Hand over a case and wait for the answer.

        Raises:
            WorkerLost: It died, or took longer than ``limit`` seconds.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(case) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerLost(self._died("before it got the case")) from None
        return self._answer(limit, "in this case")

    def close(self) -> None:
        """End the process with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # what was still to be written has no reader
            self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self, limit: float, when: str) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            raise WorkerLost(f"took longer than {limit:.0f} s {when}{self._last_words()}") from None
        if not line:
            raise WorkerLost(self._died(when))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self, when: str) -> str:
        status = self._process.wait()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the worker died {when} ({how}){self._last_words()}"

    def _last_words(self, lines: int = 8) -> str:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()[-lines:]
        return ": " + " | ".join(words) if words else ""


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
                    worker = worker or Worker(self._module)
                    limit = min(case.get("limit", LIMIT), self._deadline + GRACE - start)
                    answer = worker.ask(case | self._carried, limit)
                except WorkerLost as error:
                    answer = {"failures": [str(error)], "measured": {}, "carry": {}, "context_lost": True}
                if answer["context_lost"] and worker is not None:
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
