"""Streams of packed samples as training batches: split over processes, resumed without decoding, faults replaced.

A stream is a fixed sequence of places for each of the readers (every worker of every process is one). A place keeps
its position whether its sample can be used or not, so that where to go on after a resume is arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mixerzoo.data.images import decode_image
from mixerzoo.data.indexed import MAX_STAND_INS, seeded
from mixerzoo.data.source import Fault, MicroBatch, Share
from mixerzoo.errors import DataError, ImageError

_T = TypeVar("_T")

MAX_ABSENT = 100_000
"""Samples in a row that may be absent (a truncated shard) before the run gives up."""


class Packed(NamedTuple):
    """One place of a stream.

    Attributes:
        name: What to call the sample in messages.
        place: Seeds the augmentation, together with the run's seed; the same wherever the sample is read.
        image: The image file's bytes; empty if ``fault`` says why.
        label: Class index.
        fault: Why the sample cannot be used, if that is known before decoding; else empty.
        absent: Whether there is nothing at this place at all.
    """

    name: str
    place: tuple[int, ...]
    image: bytes = b""
    label: int = -1
    fault: str = ""
    absent: bool = False


@dataclass(frozen=True)
class Reader:
    """One of the readers that share a stream.

    Attributes:
        index: This one, from 0.
        of: How many there are.
        seed: Seeds the order.
    """

    index: int
    of: int
    seed: int


class Stream(Protocol):
    """Samples in an order that is a function of the reader, without end."""

    def samples(self, reader: Reader, skip: int) -> Iterator[Packed]:
        """Yield the reader's places from number ``skip`` on; what is skipped is not decoded."""
        ...


def readers(world_size: int, workers: int) -> int:
    """How many readers share a stream: each worker, or each process that reads for itself."""
    return world_size * max(workers, 1)


def stream_micro_batches(
    stream: Stream, transform: Callable[[Image.Image], Tensor], share: Share, first_step: int
) -> Iterator[MicroBatch]:
    """Yield without end one process's micro-batches from ``first_step`` on.

    With ``share.neighbours`` a micro-batch is a ring of its own: its last image comes first once more.

    Args:
        stream: The samples.
        transform: PIL image -> float32 tensor (channels, height, width).
        share: Which part of every global batch this process reads.
        first_step: Step to begin with.

    Raises:
        DataError: The stream cannot be read, or too many samples in a row cannot be used.
    """
    loader: DataLoader[MicroBatch | DataError] = DataLoader(
        _MicroBatches(stream, transform, share, first_step * share.accumulate),
        batch_size=None,
        num_workers=share.workers,
        pin_memory=share.pin_memory,
        generator=torch.Generator(),  # of its own: starting workers does not touch the global one
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _MicroBatches(IterableDataset[MicroBatch | DataError]):
    """The micro-batches of one worker; the loader takes one from each worker in turn."""

    def __init__(
        self, stream: Stream, transform: Callable[[Image.Image], Tensor], share: Share, first_micro_batch: int
    ):
        self.stream, self.transform, self.share, self.first = stream, transform, share, first_micro_batch

    def __iter__(self) -> Iterator[MicroBatch | DataError]:
        info, share = get_worker_info(), self.share
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # Micro-batch b is worker b % workers' number b // workers. The loader asks its first worker first, so that
        # the workers of a resumed run take each other's places.
        batch = self.first + worker
        reader = Reader(share.rank * workers + batch % workers, readers(share.world_size, share.workers), share.seed)
        try:
            samples = usable(self.stream.samples(reader, batch // workers * share.micro_batch), share.seed)
            while True:
                yield self._micro_batch(samples)
        except DataError as error:  # raised by the process that takes it, in one line and without a worker's traceback
            yield error

    def _micro_batch(self, samples: Iterator[Usable]) -> MicroBatch:
        images: list[Tensor] = []
        labels: list[int] = []
        faults: list[Fault] = []
        for _ in range(self.share.micro_batch):
            sample = next(samples)
            with seeded(*sample.seed):
                images.append(self.transform(sample.image))
            labels.append(sample.label)
            faults += sample.faults
        if self.share.neighbours:
            images, labels = [images[-1], *images], [labels[-1], *labels]
        return MicroBatch(torch.stack(images), torch.tensor(labels), tuple(faults))


class Usable(NamedTuple):
    """A decoded sample.

    Attributes:
        image: RGB.
        label: Class index.
        seed: Seeds its augmentation.
        faults: The sample that it stands in for, if it does.
    """

    image: Image.Image
    label: int
    seed: tuple[int, ...]
    faults: tuple[Fault, ...]


def usable(samples: Iterator[Packed], seed: int) -> Iterator[Usable]:
    """Decode an endless stream; the next sample that can be used stands in for one that cannot.

    Raises:
        DataError: More than :data:`MAX_STAND_INS` samples in a row cannot be used, or :data:`MAX_ABSENT` are absent.
    """
    while True:
        unusable: list[tuple[Packed, Fault]] = []
        present = 0
        while not isinstance(image := decode(sample := next(samples)), Image.Image):
            unusable.append((sample, image))
            present += not sample.absent
            if present > MAX_STAND_INS or len(unusable) > MAX_ABSENT:
                raise DataError(
                    f"{len(unusable)} samples in a row cannot be used, the last is {image.name} ({image.reason})."
                )
        for other, fault in unusable:
            yield Usable(image, sample.label, (seed, *other.place), (fault,))
        yield Usable(image, sample.label, (seed, *sample.place), ())


def decode(sample: Packed) -> Image.Image | Fault:
    """The sample's image (RGB), or what is wrong with it."""
    if sample.fault:
        return Fault(sample.name, sample.fault)
    try:
        return decode_image(sample.image, sample.name)
    except ImageError as error:
        return Fault(sample.name, str(error).removeprefix(f"{sample.name}: "))


def buffered_order(count: int, buffer_size: int, *, seed: int) -> Tensor:
    """The order in which a shuffle buffer of ``buffer_size`` gives out ``count`` samples that arrive one by one.

    Returns:
        (count,) int64, a permutation: element p is the arrival number of the sample given out at place p. It is less
        than ``p + buffer_size``.
    """
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    held = list(range(min(buffer_size, count)))
    order = []
    for place, draw in enumerate(draws):
        chosen = int(draw * len(held))
        order.append(held[chosen])
        arriving = place + buffer_size
        if arriving < count:
            held[chosen] = arriving
        else:
            held[chosen] = held[-1]
            held.pop()
    return torch.tensor(order, dtype=torch.int64)


def given_out(arriving: Iterator[tuple[int, _T]], order: Tensor, skip: int) -> Iterator[tuple[int, _T]]:
    """Give out numbered samples in an order of :func:`buffered_order`, from its place ``skip`` on.

    Args:
        arriving: Samples with their arrival numbers; those of the places before ``skip`` may be left out.
        order: Arrival number for each place.
        skip: First place.

    Yields:
        Arrival number and sample.
    """
    late = set(order[skip:].tolist())
    held: dict[int, _T] = {}
    for wanted in order[skip:].tolist():
        while wanted not in held:
            number, sample = next(arriving)
            if number in late:
                held[number] = sample
        yield wanted, held.pop(wanted)
