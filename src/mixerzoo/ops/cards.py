"""On which cards the fused kernels have passed the GPU suite, and which backend was fastest there.

The table is ``assets/cards.json``; ``mixerzoo bench --suite gpu --part correctness --record`` writes a card's entry.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from mixerzoo.errors import ConfigError
from mixerzoo.ops.problem import Operation, Problem

CARDS = Path(__file__).parent.parent / "assets" / "cards.json"


@dataclass(frozen=True)
class CardRecord:
    """What was seen on one kind of card.

    Attributes:
        circumstances: Versions, date and command of the runs.
        passed: Operation to the dtypes in which every shape was right, forward and backward.
        fastest: :func:`problem_key` to the fastest backend's name.
    """

    circumstances: dict[str, str] = field(default_factory=dict)
    passed: dict[Operation, list[str]] = field(default_factory=dict)
    fastest: dict[str, str] = field(default_factory=dict)


def problem_key(problem: Problem) -> str:
    """One line that names a problem in the table, such as ``token_mlp 196x768x384 bfloat16 tanh training``."""
    shape = f"{problem.tokens}x{problem.channels}x{problem.hidden}"
    dtype = str(problem.dtype).removeprefix("torch.")
    return f"{problem.op} {shape} {dtype} {problem.act} {'training' if problem.training else 'inference'}"


@functools.cache
def read_cards(path: Path = CARDS) -> dict[str, CardRecord]:
    """Every recorded card by the name that CUDA gives it."""
    return {name: CardRecord(**record) for name, record in json.loads(path.read_text()).items()}


def record_card(name: str, record: CardRecord, path: Path = CARDS) -> None:
    """Enter or replace one card.

    Raises:
        ConfigError: The package's folder cannot be written (an installed package; use a source tree).
    """
    try:
        cards = json.loads(path.read_text()) | {name: record.__dict__}
        new = path.with_suffix(".new")
        new.write_text(json.dumps(cards, indent=2, sort_keys=True) + "\n")
        os.replace(new, path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}): record cards from a source tree, where you can."
        ) from None
    read_cards.cache_clear()
