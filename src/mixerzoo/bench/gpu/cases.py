"""The terms that the parent and its workers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Case: TypeAlias = dict[str, Any]
"""What one worker does at a time, plain enough for JSON.

``label`` names it in every report. ``limit`` (seconds, compilation included) and ``may_fail`` (its failure is reported
but fails no run) are the parent's; the rest is for the part's ``run_case``.
"""

LIMIT = 120.0
"""Seconds a case may take where it does not say."""


@dataclass(frozen=True)
class Outcome:
    """What a part's ``run_case`` found.

    Attributes:
        failures: A sentence for everything that was wrong; none if the case passed.
        measured: Figures, plain enough for JSON.
        carry: Entries that the parent adds to every later case, in whichever worker it runs.
    """

    failures: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    carry: dict[str, Any] = field(default_factory=dict)


RunCase: TypeAlias = Callable[[Case], Outcome]


@dataclass(frozen=True)
class Result:
    """One case with what became of it.

    Attributes:
        case: The case as it was planned.
        status: ``"passed"``, ``"failed"`` or ``"not run"``.
        seconds: How long it took, compilation included.
        failures: Why it failed, or was not run.
        measured: See :class:`Outcome`.
    """

    case: Case
    status: str
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The case's name."""
        return str(self.case["label"])

    @property
    def counts_as_failure(self) -> bool:
        """Whether the run fails because of it."""
        return self.status == "failed" and not self.case.get("may_fail", False)
