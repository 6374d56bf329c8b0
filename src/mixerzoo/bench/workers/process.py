"""The parent's side of a worker: ask, wait no longer than a limit, and end it with all that it started."""

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
from collections.abc import Mapping
from typing import Any

START_LIMIT = 180.0
"""Seconds a worker may take to import what it needs."""


class WorkerLost(Exception):  # noqa: N818  # it says what happened
    """A worker that died or did not answer in time; the message says which, with its last words."""


class Worker:
    """One worker process, started at once; whoever asks it first waits until it is ready.

    Args:
        program: Name of a module that serves its standard input (:func:`mixerzoo.bench.workers.serving.serve`).
        arguments: Its command line.
        environment: Entries that replace or join this process's own.
    """

    def __init__(self, program: str, *arguments: str, environment: Mapping[str, str] | None = None):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close()
        command = [sys.executable, "-m", program, *arguments]
        self._process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | dict(environment or {}),
            start_new_session=True,  # so that the compilers it starts end with it
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready = False

    def ask(self, request: Mapping[str, Any], limit: float, doing: str = "in this case") -> dict[str, Any]:
        """Hand over a request and wait for the answer.

        Args:
            request: Plain enough for JSON.
            limit: Seconds to wait.
            doing: What the worker does meanwhile, for the message.

        Raises:
            WorkerLost: It died, took longer than ``limit`` seconds, or did not become ready.
        """
        if not self._ready:
            self._answer(START_LIMIT, "starting")
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerLost(self._died("before it was asked")) from None
        return self._answer(limit, doing)

    def close(self) -> None:
        """End the process with all that it started; a second time does nothing."""
        if self._errors.closed:
            return
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
