"""From names as a user types them to a race: who is known, who is here, and who races in what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from mixerzoo.bench.race.contenders import CONTENDERS
from mixerzoo.bench.race.terms import OURS, Device, Dtype, Entry, Race
from mixerzoo.errors import ConfigError, ModelNameError, did_you_mean
from mixerzoo.zoo import VARIANTS

DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass(frozen=True)
class Field:
    """Who takes part in races of one dtype on one device.

    Attributes:
        entries: Ours first.
        skipped: A sentence for each that was asked for and does not take part.
    """

    entries: tuple[Entry, ...]
    skipped: tuple[str, ...] = ()


def check_model(name: str) -> str:
    """Return the name of a variant.

    Raises:
        ModelNameError: There is none of that name.
    """
    if name not in VARIANTS:
        raise ModelNameError(
            f"There is no model {name!r} to race.{did_you_mean(name, VARIANTS)} The weights are random: a variant is "
            f"named without a tag, one of {', '.join(VARIANTS)}."
        )
    return name


def check_dtype(name: str) -> Dtype:
    """Return the name of a dtype.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name} is unknown: use one of {', '.join(DTYPES)}.{did_you_mean(name, DTYPES)}")
    return name


def check_peer(name: str) -> str:
    """Return the name of a contender.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in CONTENDERS:
        known = ", ".join(CONTENDERS)
        raise ConfigError(f"There is no peer {name!r}: use some of {known}.{did_you_mean(name, CONTENDERS)}")
    return name


def field_of(dtype: Dtype, device: Device, peers: Iterable[str] | None = None) -> Field:
    """Who takes part.

    Args:
        dtype: What ours runs in, and everybody who can.
        device: Where.
        peers: Whom ours races against, in this order; None for everybody.

    Raises:
        ConfigError: There is no such peer, or ours itself cannot run.
    """
    asked = _everybody(dtype, device) if peers is None else [check_peer(name) for name in peers]
    names = [name for name in dict.fromkeys(asked) if name != OURS]
    obstacle = CONTENDERS[OURS][1].why_not(device, dtype)
    if obstacle:
        raise ConfigError(f"Ours cannot race in {dtype} on {device}: {obstacle}.")
    entries, skipped = [Entry(OURS, dtype, CONTENDERS[OURS][0])], []
    for name in names:
        entry, why = _entry(name, dtype, device)
        if entry is not None:
            entries.append(entry)
        if why is not None:
            skipped.append(f"{name}: {why}")
    return Field(tuple(entries), tuple(skipped))


def _everybody(dtype: Dtype, device: Device) -> list[str]:
    """Contenders that could take part if they were installed."""
    return [
        name
        for name, (_, contender) in CONTENDERS.items()
        if contender.stand_in.get(dtype, (dtype, ""))[0] in contender.offers.get(device, ())
    ]


def _entry(name: str, dtype: Dtype, device: Device) -> tuple[Entry | None, str | None]:
    module, contender = CONTENDERS[name]
    other, note = contender.stand_in.get(dtype, (dtype, ""))
    obstacle = contender.why_not(device, other)
    return (None, obstacle) if obstacle else (Entry(name, other, module, note), None)


def plan_races(
    model: str,
    batch_sizes: Sequence[int],
    device: Device,
    field: Field,
    threads: int | None = None,
    rounds: int = 7,
) -> list[Race]:
    """A race for each batch size.

    Args:
        model: A variant's name.
        batch_sizes: Images of a call.
        device: Where.
        field: Who takes part.
        threads: Threads of each contender on the CPU; None for as many as PyTorch uses, one for each physical core.
        rounds: How often each is asked.

    Raises:
        ModelNameError: There is no such model.
        ConfigError: A number is not positive.
    """
    check_model(model)
    numbers = {"--batch-size": min(batch_sizes), "--rounds": rounds, "--threads": 1 if threads is None else threads}
    for option, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{option} {number} must be at least 1.")
    count = threads or torch.get_num_threads()
    return [Race(model, size, device, count, field.entries, rounds) for size in batch_sizes]
