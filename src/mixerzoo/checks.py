"""Checks of configuration values; each failure names the field, the value and what was expected."""

from __future__ import annotations

import math
from operator import ge, gt, le, lt
from typing import Any

from mixerzoo.errors import ConfigError

_NO_LIMIT = 2**31


def check_integer(name: str, value: object, *, minimum: int, maximum: int = _NO_LIMIT) -> None:
    """Raise ConfigError unless ``value`` is an integer in [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        bounds = f"of at least {minimum}" if maximum == _NO_LIMIT else f"from {minimum} to {maximum}"
        raise ConfigError(f"{name}={value!r} must be an integer {bounds}.")


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> None:
    """Raise ConfigError unless ``value`` is a finite number within the limits given."""
    limits = ((minimum, ge, "at least"), (above, gt, "above"), (maximum, le, "at most"), (below, lt, "below"))
    given = [(limit, holds, words) for limit, holds, words in limits if limit is not None]
    number = isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    if not number or not all(holds(value, limit) for limit, holds, _ in given):
        bounds = " and ".join(f"{words} {limit:g}" for limit, _, words in given)
        raise ConfigError(f"{name}={value!r} must be a finite number{', ' if bounds else ''}{bounds}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown: use {' or '.join(repr(c) for c in choices)}.")
