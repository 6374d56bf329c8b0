"""A worker: ``python -m mixerzoo.bench.gpu.worker MODULE`` answers each JSON line with one.

``MODULE`` has a function ``run_case`` (:data:`mixerzoo.bench.gpu.cases.RunCase`). What libraries print to standard
output goes to standard error, so that answers stay clean.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Any, TextIO

import torch

from mixerzoo.bench.gpu.cases import Case, RunCase


def serve(module: str, cases: Iterable[str], answers: TextIO) -> None:
    """Answer until the cases end or this process can no longer use its CUDA context.

    Args:
        module: Where ``run_case`` is.
        cases: JSON lines.
        answers: Receives one line to say that the worker is ready, and one a case.
    """
    run_case: RunCase = importlib.import_module(module).run_case
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in cases:
        answer = attempt(run_case, json.loads(line))
        print(json.dumps(_plain(answer)), file=answers, flush=True)
        if answer["context_lost"]:
            return
        _tidy()


def attempt(run_case: RunCase, case: Case) -> dict[str, Any]:
    """Run one case; whatever goes wrong is part of the answer."""
    try:
        outcome = run_case(case)
        _synchronise()
    except Exception as error:
        trace = traceback.format_exc().splitlines()[-12:]
        return {
            "failures": [f"{type(error).__name__}: {error}"],
            "measured": {"traceback": trace},
            "carry": {},
            "context_lost": not _context_lives(),
        }
    answer = {"failures": outcome.failures, "measured": outcome.measured, "carry": outcome.carry}
    return answer | {"context_lost": False}


def _synchronise() -> None:
    """Kernels run behind the program's back: let this case's errors appear in this case."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _context_lives() -> bool:
    try:
        _synchronise()
    except RuntimeError:
        return False
    return True


def _tidy() -> None:
    """Forget compiled graphs (the compiler refuses a function after eight recompilations) and give memory back."""
    torch._dynamo.reset()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _plain(value: Any) -> Any:
    """The value with ``nan`` and ``inf`` as text, because JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Serve standard input."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.argv[1], sys.stdin, answers)


if __name__ == "__main__":
    main()
