"""Labelled images with random access: order, augmentation and mixup partners are functions of seed, epoch and index."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets import ImageFolder

from mixerzoo.data.source import Fault, MicroBatch, Share, epoch_order, seed_of
from mixerzoo.errors import DataError, ImageError

_Sample: TypeAlias = tuple[Tensor, int, tuple[Fault, ...]]

MAX_STAND_INS = 20
"""Samples in a row that may be unreadable before the run gives up."""

_HOLDOUT_SEED = 20210504  # fixed: what is held out does not depend on a run's seed


class Labelled(Protocol):
    """Images and class indices that can be read in any order.

    Attributes:
        classes: Names of the classes in label order, or None.
    """

    classes: list[str] | None

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Decode one image.

        Raises:
            ImageError: It cannot be used; the message begins with its name.
        """
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...


class FolderImages:
    """The images of one split of an image folder, see :func:`mixerzoo.data.folder.open_folder`."""

    def __init__(self, folder: ImageFolder):
        self.folder = folder
        self.classes: list[str] | None = folder.classes

    def __len__(self) -> int:
        return len(self.folder.samples)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Decode one image."""
        path, label = self.folder.samples[index]
        return self.folder.loader(path), label

    def name(self, index: int) -> str:
        """Its path."""
        return self.folder.samples[index][0]


class Chosen:
    """Some of the images of another set, in the order given."""

    def __init__(self, data: Labelled, indices: list[int]):
        self.data, self.indices = data, indices
        self.classes = data.classes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Decode one image."""
        return self.data.read(self.indices[index])

    def name(self, index: int) -> str:
        """Its name in the other set."""
        return self.data.name(self.indices[index])


def hold_out(data: Labelled, share: float) -> tuple[Labelled, Labelled]:
    """Split into a part to train on and ``share`` to evaluate on; which images these are depends on nothing else.

    Raises:
        DataError: One of the parts would be empty.
    """
    order = epoch_order(_HOLDOUT_SEED, 0, len(data)).tolist()
    count = round(share * len(data))
    if not 0 < count < len(data):
        raise DataError(f"holdout={share} of {len(data)} images leaves one side empty: choose another share.")
    return Chosen(data, sorted(order[count:])), Chosen(data, sorted(order[:count]))


class Transformed(Dataset[tuple[Any, int]]):
    """A PyTorch data set of (transformed image, label) over labelled images, for evaluation.

    Args:
        data: The images.
        transform: Applied to each.
    """

    def __init__(self, data: Labelled, transform: Callable[[Image.Image], Any]):
        self.data, self.transform = data, transform
        self.classes = data.classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.data.read(index)
        return self.transform(image), label


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Draw Python's, NumPy's and torch's (CPU) random numbers from a seed made of ``parts``, and restore them after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class IndexedSource:
    """Training images with random access as a :class:`mixerzoo.data.source.Source`.

    Every epoch is a permutation of the images; its incomplete last batch is dropped. An image that cannot be read is
    replaced by the one after it, and reported.

    Args:
        data: The images.
        transform: Augments and normalises one image: PIL image -> float32 tensor (channels, height, width). It may
            draw from Python's, NumPy's and torch's generators.

    Raises:
        DataError: While iterating: there are fewer images than one batch, or many unreadable ones in a row.
    """

    def __init__(self, data: Labelled, transform: Callable[[Image.Image], Tensor]):
        self.data, self.transform = data, transform
        self.num_images, self.classes = len(data), data.classes

    def describe(self, share: Share) -> dict[str, Any]:  # noqa: ARG002  (the order depends on no share)
        """The number of images and their classes: any number of processes reads the same global batches."""
        return {"num_images": self.num_images, "classes": self.classes}

    def micro_batches(self, share: Share, first_step: int) -> Iterator[MicroBatch]:
        """Yield without end this process's micro-batches from ``first_step`` on."""
        if self.num_images < share.batch_size:
            raise DataError(
                f"The training split has {self.num_images} images, fewer than one batch of {share.batch_size}: lower "
                "batch_size."
            )
        loader = DataLoader(
            _Samples(self.data, self.transform, share.seed),
            batch_sampler=_Order(self.num_images, share, first_step),
            num_workers=share.workers,
            collate_fn=_collate,
            pin_memory=share.pin_memory,
            generator=torch.Generator(),  # of its own: starting workers does not touch the global one
        )
        yield from loader


class _Order(Sampler[list[tuple[int, int]]]):
    """Yields each micro-batch as (epoch, index) pairs, without end."""

    def __init__(self, num_images: int, share: Share, first_step: int):
        self.num_images, self.share, self.first_step = num_images, share, first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share, steps_per_epoch = self.share, self.num_images // self.share.batch_size
        epoch, step = divmod(self.first_step, steps_per_epoch)
        while True:
            order = epoch_order(share.seed, epoch, self.num_images)
            for start in range(step * share.batch_size, steps_per_epoch * share.batch_size, share.batch_size):
                batch = order[start : start + share.batch_size].tolist()
                for micro in range(share.accumulate):
                    yield [(epoch, batch[place]) for place in share.positions(micro)]
            epoch, step = epoch + 1, 0


class _Samples(Dataset[_Sample]):
    """Augmented samples by (epoch, index)."""

    def __init__(self, data: Labelled, transform: Callable[[Image.Image], Tensor], seed: int):
        self.data, self.transform, self.seed = data, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> _Sample:
        epoch, index = key
        faults: list[Fault] = []
        for candidate in range(index, index + MAX_STAND_INS):
            place = candidate % len(self.data)
            try:
                image, label = self.data.read(place)
            except ImageError as error:
                name = self.data.name(place)
                faults.append(Fault(name, str(error).removeprefix(f"{name}: ").removesuffix(".")))
                continue
            with seeded(self.seed, epoch, place):
                return self.transform(image), label, tuple(faults)
        raise DataError(
            f"{MAX_STAND_INS} images in a row cannot be read, the last is {faults[-1].name} ({faults[-1].reason})."
        )


def _collate(samples: list[_Sample]) -> MicroBatch:
    images, labels, faults = zip(*samples, strict=True)
    return MicroBatch(torch.stack(images), torch.tensor(labels), tuple(fault for some in faults for fault in some))
