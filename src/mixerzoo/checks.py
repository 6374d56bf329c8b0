"""Checks of configuration values; each failure names the field, the value and what was expected."""

from __future__ import annotations

import math

from mixerzoo.errors import ConfigError


def check_integer(name: str, value: object, *, minimum: int, maximum: int = 2**31) -> None:
    """Raise ConfigError unless ``value`` is an integer in [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ConfigError(f"{name}={value!r} must be an integer in [{minimum}, {maximum}].")


def check_number(name: str, value: object, *, minimum: float = -math.inf, below: float = math.inf) -> None:
    """Raise ConfigError unless ``value`` is a number in [minimum, below)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value < below:
        raise ConfigError(f"{name}={value!r} must be a number in [{minimum:g}, {below:g}).")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown: use {' or '.join(repr(c) for c in choices)}.")
