"""What training reads: micro-batches in an order that is a function of the seed and the step.

A global batch is what one optimiser step sees, over all processes. It is cut into equal micro-batches in the order
(process, accumulation step), so that another number of processes reads the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mixerzoo.errors import ConfigError


@dataclass(frozen=True)
class Fault:
    """A sample that could not be used.

    Attributes:
        name: The file, or the shard and key, that it came from.
        reason: What is wrong with it, one line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class MicroBatch:
    """Images that go through the model at once; M of them.

    Attributes:
        images: (M, channels, height, width) float32; (M + 1, ...) if ``Share.neighbours``: the first row is then the
            left neighbour of the second in the global batch (a ring), for mixup.
        labels: (M,) or (M + 1,) int64.
        faults: Samples that others stand in for.
    """

    images: Tensor
    labels: Tensor
    faults: tuple[Fault, ...] = ()

    def pin_memory(self) -> MicroBatch:
        """The same in page-locked memory (called by PyTorch's ``DataLoader``)."""
        return MicroBatch(self.images.pin_memory(), self.labels.pin_memory(), self.faults)


@dataclass(frozen=True)
class Share:
    """Which part of every global batch one process reads, and how.

    Attributes:
        batch_size: Images of a global batch.
        accumulate: Micro-batches that each process reads a step.
        rank: This process.
        world_size: Processes.
        seed: Seeds order and augmentation.
        workers: Processes that read and augment for this one; 0 reads in this process.
        neighbours: Add the left neighbour to each micro-batch.
        pin_memory: Put micro-batches into page-locked memory.

    Raises:
        ConfigError: The global batch cannot be cut into equal micro-batches.
    """

    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    workers: int = 0
    neighbours: bool = False
    pin_memory: bool = False

    def __post_init__(self) -> None:
        """Check that micro-batches come out equal."""
        if self.batch_size % (self.world_size * self.accumulate):
            raise ConfigError(
                f"batch_size={self.batch_size} cannot be shared equally by {self.world_size} processes with "
                f"{self.accumulate} micro-batches each: choose a multiple of {self.world_size * self.accumulate}."
            )

    @property
    def micro_batch(self) -> int:
        """Images of one micro-batch (M), without a neighbour."""
        return self.batch_size // (self.world_size * self.accumulate)

    def positions(self, micro: int) -> list[int]:
        """Places in the global batch of this process's ``micro``-th micro-batch, the neighbour first if wanted."""
        start = (self.rank * self.accumulate + micro) * self.micro_batch
        first = start - 1 if self.neighbours else start
        return [place % self.batch_size for place in range(first, start + self.micro_batch)]


class Source(Protocol):
    """A training split that can be read in a reproducible order, again and again.

    Attributes:
        num_images: Images of one epoch.
        classes: Names of the classes in label order; None where the data has no names for them.
    """

    num_images: int
    classes: list[str] | None

    def describe(self, share: Share) -> dict[str, Any]:
        """What must be the same when a run is resumed: plain values only."""
        ...

    def micro_batches(self, share: Share, first_step: int) -> Iterator[MicroBatch]:
        """Yield without end this process's micro-batches, ``share.accumulate`` a step, from ``first_step`` on."""
        ...


def seed_of(*parts: int) -> int:
    """A 63-bit seed that depends on every part (but for zeros at the end), for instance seed, epoch and index."""
    high, low = np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(2)
    return (int(high) << 31) ^ int(low)


def epoch_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """The order of an epoch: a permutation (num_images,) int64 of the indices."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    return torch.randperm(num_images, generator=generator)
