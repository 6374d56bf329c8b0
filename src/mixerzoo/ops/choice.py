"""Which backend computes an operation, and why not a faster one."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch

from mixerzoo.config import Gelu
from mixerzoo.errors import BackendError, did_you_mean
from mixerzoo.kernels.precision import tf32_allowed
from mixerzoo.ops.backends import BACKENDS
from mixerzoo.ops.cards import problem_key, read_cards
from mixerzoo.ops.problem import Operation, Problem

REFERENCE = "reference"
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """What runs an operation.

    Attributes:
        op: The operation.
        backend: The backend's name; ``"reference"`` is the model's plain layers.
        reason: Why this one.
        passed_over: Each faster backend and why it does not run.
    """

    op: Operation
    backend: str
    reason: str
    passed_over: dict[str, str]

    def __str__(self) -> str:
        """One line for what runs, and one for each backend that does not."""
        lines = [f"{self.op}: {self.backend} ({self.reason})"]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.passed_over.items()])


def check_backend(op: Operation, name: str) -> str:
    """Return the name of a backend that has an operation.

    Raises:
        BackendError: There is none of that name, or it lacks the operation.
    """
    known = (AUTO, REFERENCE, *(backend.name for backend in BACKENDS.values() if op in backend.implementations))
    if name not in known:
        hint = did_you_mean(str(name), known)
        raise BackendError(f"{name!r} is no backend for {op}: use one of {', '.join(map(repr, known))}.{hint}")
    return name


def choose(problem: Problem, requested: str = AUTO) -> Choice:
    """Choose a backend.

    Args:
        problem: What is to be computed.
        requested: ``"auto"``, ``"reference"`` or a backend's name.

    Raises:
        BackendError: The requested backend is unknown or cannot compute this problem.
    """
    check_backend(problem.op, requested)
    if requested == REFERENCE:
        return Choice(problem.op, REFERENCE, "asked for", {})
    if requested != AUTO:
        obstacle = BACKENDS[requested].obstacle(problem)
        if obstacle:
            raise BackendError(
                f"The backend {requested!r} cannot compute {problem.op} here: {obstacle}. Leave the choice to "
                "model.set_backend('auto'), or see model.explain_backend(x)."
            )
        return Choice(problem.op, requested, "asked for", {})
    return _automatic(problem)


def _obstacle(name: str, problem: Problem) -> str | None:
    if problem.op not in BACKENDS[name].implementations:
        return f"it has no {problem.op}"
    return BACKENDS[name].obstacle(problem)


def _automatic(problem: Problem) -> Choice:
    if problem.device.type != "cuda":
        reasons = {name: _obstacle(name, problem) or b.reservation(problem) or "" for name, b in BACKENDS.items()}
        return Choice(problem.op, REFERENCE, f"the plain layers run on {problem.device.type}", reasons)
    card = torch.cuda.get_device_name(problem.device)
    record = read_cards().get(card)
    dtype = str(problem.dtype).removeprefix("torch.")
    proven = record is not None and dtype in record.passed.get(problem.op, ())
    fastest = record.fastest.get(problem_key(problem)) if record else None
    passed_over: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        reason = _obstacle(name, problem)
        if reason is None and not proven:
            reason = f"no run of the GPU suite in {dtype} is recorded for {card}; model.set_backend({name!r}) uses it"
        if reason is None and fastest not in (None, name):
            reason = f"{fastest} was faster on {card}"
        if reason is None and fastest is None:
            reason = backend.reservation(problem)
        if reason is None:
            return Choice(problem.op, name, f"measured fastest on {card}" if fastest else "first that can", passed_over)
        passed_over[name] = reason
    return Choice(problem.op, REFERENCE, "no other backend is to be used here", passed_over)


def with_precision(problem: Problem) -> Problem:
    """The problem with what the user allows float32 products to be."""
    return dataclasses.replace(problem, tf32=tf32_allowed())


# The compiler takes the name as a constant: it depends only on what a graph is specialised on anyway.
@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def backend_name(
    op: Operation,
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    act: Gelu,
    training: bool,
    requested: str,
) -> str:
    """The name that :func:`choose` arrives at; ``sizes`` are tokens, channels and hidden width."""
    problem = with_precision(Problem(op, device, dtype, *sizes, act, training))
    return (_chosen_once if device.type == "cuda" else choose)(problem, requested).backend


@functools.cache  # every layer asks at every step, and a card stays what it is
def _chosen_once(problem: Problem, requested: str) -> Choice:
    return choose(problem, requested)
