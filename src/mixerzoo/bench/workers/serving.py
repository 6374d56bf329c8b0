"""A worker's side: answer each JSON line on standard input with one on standard output.

What libraries print to standard output goes to standard error, so that answers stay clean.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TextIO, TypeAlias

Handle: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""From a request to its answer. An answer with a true entry ``last`` ends the worker."""

_TRACE_LINES = 12


def serve(make: Callable[[], Handle], requests: Iterable[str], answers: TextIO) -> None:
    """Answer until the requests end or an answer is the last.

    Args:
        make: Imports what is needed and returns the function that answers.
        requests: JSON lines.
        answers: Receives one line to say that the worker is ready, and one a request.
    """
    handle = make()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in requests:
        answer = handle(json.loads(line))
        print(json.dumps(plain(answer)), file=answers, flush=True)
        if answer.get("last", False):
            return


def serve_standard_input(make: Callable[[], Handle]) -> None:
    """Serve this process's standard input."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(make, sys.stdin, answers)


def guarded(handle: Handle) -> Handle:
    """The same function, with an exception as an answer: ``failure`` and ``traceback``."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            return handle(request)
        except Exception as error:
            said = " ".join(str(error).split())
            return {"failure": f"{type(error).__name__}: {said}", "traceback": last_calls()}

    return answer


def last_calls() -> list[str]:
    """The end of the traceback of the exception that is being handled."""
    return traceback.format_exc().splitlines()[-_TRACE_LINES:]


def plain(value: Any) -> Any:
    """The value with ``nan`` and ``inf`` as text, because JSON has no word for them."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
