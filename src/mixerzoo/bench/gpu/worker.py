"""A worker of the GPU suite: ``python -m mixerzoo.bench.gpu.worker MODULE`` runs the cases that it is handed.

``MODULE`` has a function ``run_case`` (:data:`mixerzoo.bench.gpu.cases.RunCase`).
"""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

import torch

from mixerzoo.bench.gpu.cases import Case, RunCase
from mixerzoo.bench.workers.serving import Handle, last_calls, serve_standard_input


def attempt(run_case: RunCase, case: Case) -> dict[str, Any]:
    """Run one case; whatever goes wrong is part of the answer. It is the last if the CUDA context is lost."""
    try:
        outcome = run_case(case)
        _synchronise()
    except Exception as error:
        return {
            "failures": [f"{type(error).__name__}: {error}"],
            "measured": {"traceback": last_calls()},
            "carry": {},
            "last": not _context_lives(),
        }
    return {"failures": outcome.failures, "measured": outcome.measured, "carry": outcome.carry, "last": False}


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


def _handler() -> Handle:
    run_case: RunCase = importlib.import_module(sys.argv[1]).run_case

    def handle(case: Case) -> dict[str, Any]:
        answer = attempt(run_case, case)
        if not answer["last"]:
            _tidy()
        return answer

    return handle


if __name__ == "__main__":
    serve_standard_input(_handler)
