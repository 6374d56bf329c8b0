"""Entering a card into the table from which the automatic choice of a backend reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mixerzoo.bench.gpu.cases import Result
from mixerzoo.bench.gpu.contenders import VARIANTS, contender, widths
from mixerzoo.bench.gpu.inputs import NUMERICS
from mixerzoo.errors import ConfigError
from mixerzoo.ops.cards import CARDS, CardRecord, problem_key, read_cards, record_card
from mixerzoo.ops.problem import OPERATIONS, Operation, Problem


def proven(results: Iterable[Result]) -> tuple[dict[Operation, list[str]], list[str]]:
    """Operations and dtypes of which every case passed.

    A record lets the automatic choice use every backend: cases of all backends count, and both precisions of float32.

    Returns:
        Operation to dtypes, and a sentence for each pair that is missing.
    """
    pairs: dict[tuple[Operation, str], list[Result]] = {}
    for result in results:
        dtype = str(NUMERICS[result.case["numerics"]]).removeprefix("torch.")
        pairs.setdefault((result.case["op"], dtype), []).append(result)
    passed: dict[Operation, list[str]] = {}
    missing = []
    for (op, dtype), cases in sorted(pairs.items()):
        wanting = [result for result in cases if result.status != "passed"]
        if wanting:
            missing.append(f"{op} in {dtype}: {len(wanting)} of {len(cases)} cases, {wanting[0].label!r} among them")
        else:
            passed.setdefault(op, []).append(dtype)
    return passed, missing


def record_correctness(
    results: Sequence[Result], card: str, circumstances: Mapping[str, Any], path: Path = CARDS
) -> str:
    """Enter what passed; the card's fastest backends stay as they were.

    Args:
        results: Of the whole correctness part.
        card: Name that CUDA gives it.
        circumstances: Versions, date and command.
        path: The table.

    Returns:
        What was entered, and what is missing.
    """
    passed, missing = proven(results)
    lines = [f"not recorded: {sentence} did not pass" for sentence in missing]
    known = read_cards(path).get(card)
    if passed or known:  # a card that fails now must not stay recorded as right
        fastest = known.fastest if known else {}
        record_card(card, CardRecord(_as_text(circumstances), passed, fastest), path)
        lines.append(f"recorded in {path}: {card}, {passed}")
    return "\n".join(lines)


def fastest_backends(results: Iterable[Result]) -> dict[str, str]:
    """The fastest eager contender by :func:`problem_key`; the first variant speaks for those with the same key."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        case = result.case
        if case["kind"] == "contender" and case["op"] in OPERATIONS:
            groups.setdefault((case["variant"], case["op"], case["mode"]), []).append(result)
    fastest: dict[str, str] = {}
    for (variant, op, mode), group in groups.items():
        eager = [r for r in group if contender(op, r.case["contender"]).mode is None]
        if any(result.status != "passed" for result in eager):
            continue
        winner = min(eager, key=lambda result: float(result.measured["median us"]))
        fastest.setdefault(problem_key(_problem(variant, op, mode)), winner.case["contender"])  # type: ignore[arg-type]
    return fastest


def _problem(variant: str, op: Operation, mode: str) -> Problem:
    """The problem as the choice of a backend asks for it: the number of tokens does not matter to channel mixing."""
    config = VARIANTS[variant]
    tokens, channels, hidden = widths(op, config)
    tokens = tokens if op == "token_mlp" else 0
    device, training = torch.device("cuda"), mode == "training"
    return Problem(op, device, torch.bfloat16, tokens, channels, hidden, config.act, training)


def record_fastest(results: Iterable[Result], card: str, circumstances: Mapping[str, Any], path: Path = CARDS) -> str:
    """Add the fastest backends to a card's record.

    Args:
        results: Of the ops part.
        card: Name that CUDA gives it.
        circumstances: Versions, date and command; those of the correctness part stay beside them.
        path: The table.

    Raises:
        ConfigError: The card has no record yet.
    """
    record = read_cards(path).get(card)
    if record is None:
        raise ConfigError(
            f"{card} has no record to add to: run `mixerzoo bench --suite gpu --part correctness --record` first."
        )
    found = fastest_backends(results)
    if not found:
        return "not recorded: no problem has a complete set of eager contenders"
    timed = {f"ops {key}": value for key, value in _as_text(circumstances).items()}
    circumstances = record.circumstances | timed
    entry = dataclasses.replace(record, circumstances=circumstances, fastest=record.fastest | found)
    record_card(card, entry, path)
    return f"recorded in {path}: {card}, " + ", ".join(f"{key}: {name}" for key, name in found.items())


def _as_text(circumstances: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in circumstances.items()}
