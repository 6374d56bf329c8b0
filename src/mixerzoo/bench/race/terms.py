"""The terms of a race: what is raced, by whom, and what a contender is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

Dtype = Literal["fp32", "bf16", "int8", "fp8"]
"""How matrix products run: in float32, in bfloat16, or quantised with the rest in bfloat16."""

Device = Literal["cpu", "cuda"]

OURS = "mixerzoo"
"""The contender that every ratio is of."""

BOUNDS: Mapping[Dtype, float] = MappingProxyType({"fp32": 1e-3, "bf16": 0.03, "int8": 0.2, "fp8": 0.2})
"""Relative L2 error of logits against float32 beyond which a contender computes something else.

The other GELU costs about 1e-3, bfloat16 about 0.01, quantisation of random weights and images 0.02 to 0.1.
"""


@dataclass(frozen=True)
class Task:
    """What a contender is to build.

    Attributes:
        model: A variant's name.
        batch_size: Images of every call.
        dtype: How products run.
        device: Where.
        threads: Threads on the CPU.
        folder: Holds ``weights.safetensors`` and ``reference.safetensors``.
    """

    model: str
    batch_size: int
    dtype: Dtype
    device: Device
    threads: int
    folder: Path


@dataclass(frozen=True)
class Built:
    """A contender ready to run.

    Attributes:
        call: From float32 images (N, channels, H, W) on the task's device to logits (N, classes), a tensor or an array.
        says: What runs and why, in the contender's own words.
    """

    call: Callable[[Tensor], Any]
    says: str = ""


def _unhindered(device: Device, dtype: Dtype) -> str | None:  # noqa: ARG001
    return None


def no_fp8(device: Device, dtype: Dtype) -> str | None:
    """Why a card cannot multiply FP8; None where it can, or where that is not asked."""
    if dtype == "fp8" and device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        return "fp8 needs compute capability 8.9 (Ada) or later"
    return None


@dataclass(frozen=True)
class Contender:
    """One way to run a Mixer.

    Attributes:
        name: Its name on the command line.
        rank: Place in tables.
        offers: Dtypes by device.
        build: Loads the weights and makes everything ready; runs in the contender's worker.
        packages: Optional packages that it imports.
        quantiser: Package that its int8 needs as well.
        obstacle: Why it cannot run on a device in a dtype, beyond what is missing.
        stand_in: For a dtype that it lacks: the one it races in instead, and why.
        trainable: The module to train, where it takes part in training races.
    """

    name: str
    rank: int
    offers: Mapping[Device, tuple[Dtype, ...]]
    build: Callable[[Task], Built]
    packages: tuple[str, ...] = ()
    quantiser: str | None = None
    obstacle: Callable[[Device, Dtype], str | None] = _unhindered
    stand_in: Mapping[Dtype, tuple[Dtype, str]] = field(default_factory=dict)
    trainable: Callable[[Task], nn.Module] | None = None

    def why_not(self, device: Device, dtype: Dtype) -> str | None:
        """Why it cannot race here; None if it can."""
        offered = self.offers.get(device, ())
        if not offered:
            return f"it does not run on {device}"
        if dtype not in offered:
            return f"it has no {dtype} on {device} (it has {', '.join(offered)})"
        if device == "cuda" and not torch.cuda.is_available():
            return "there is no CUDA device here"
        quantiser = (self.quantiser,) if dtype == "int8" and self.quantiser else ()
        for package in (*self.packages, *quantiser):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed (pip install {package})"
        return self.obstacle(device, dtype)


@dataclass(frozen=True)
class Entry:
    """A contender in a dtype, as the parent hands it to a worker.

    Attributes:
        contender: The contender's name.
        dtype: How its products run.
        module: Where its ``CONTENDERS`` are.
        note: What a reader must know about its taking part.
    """

    contender: str
    dtype: Dtype
    module: str
    note: str = ""

    @property
    def label(self) -> str:
        """Name and dtype."""
        return f"{self.contender} {self.dtype}"


@dataclass(frozen=True)
class Race:
    """One model at one batch size.

    Attributes:
        model: A variant's name.
        batch_size: Images of every call.
        device: Where.
        threads: Threads that every contender gets on the CPU.
        entries: Who takes part; ours first.
        rounds: How often each is asked.
        seconds: How long a round of one contender takes, or two calls if that is longer.
        training: Whether a training step is raced instead of a forward pass.
        build_limit: Seconds that a contender may take to get ready.
        round_limit: Seconds that it may take for a round.
    """

    model: str
    batch_size: int
    device: Device
    threads: int
    entries: tuple[Entry, ...]
    rounds: int = 7
    seconds: float = 0.7
    training: bool = False
    build_limit: float = 600.0
    round_limit: float = 180.0

    @property
    def title(self) -> str:
        """Model, batch and device."""
        what = "training step" if self.training else "inference"
        return f"{self.model} batch {self.batch_size} {what} on {self.device}"

    @property
    def parallelism(self) -> str:
        """How many threads each contender has on the CPU."""
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"
