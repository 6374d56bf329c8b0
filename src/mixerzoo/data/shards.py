"""Tar shards, on this machine or on a web server, as a training stream and for evaluation."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mixerzoo.checks import check_integer
from mixerzoo.data.remote import fetch, is_url
from mixerzoo.data.source import Fault, MicroBatch, Share, epoch_order, seed_of
from mixerzoo.data.streaming import Packed, Reader, buffered_order, decode, given_out, readers, stream_micro_batches
from mixerzoo.data.tar import TarError, count_images, read_tar, shard_name, webdataset
from mixerzoo.errors import DataError, listed

MAX_SHARDS = 1_000_000
"""Most shards that a pattern may stand for."""


@dataclass(frozen=True)
class Shards:
    """A set of tar shards whose sizes are known.

    Attributes:
        locations: Local paths or ``http(s)`` addresses.
        sizes: Samples of each.
        classes: Names of the classes in label order, or None.
        num_classes: Labels are less than this; None accepts any.
    """

    locations: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: list[str] | None = None
    num_classes: int | None = None

    @property
    def num_images(self) -> int:
        """Samples of all shards."""
        return sum(self.sizes)

    def split(self, share: float) -> tuple[Shards, Shards]:
        """Hold the last shards out: about ``share`` of them, at least one.

        Raises:
            DataError: One of the parts would be empty.
        """
        total = len(self.locations)
        count = max(round(share * total), 1)
        parts = tuple(
            replace(self, locations=self.locations[part], sizes=self.sizes[part])
            for part in (slice(total - count), slice(total - count, total))
        )
        if not all(part.num_images for part in parts):
            raise DataError(f"holdout={share} of {total} shards leaves one side empty: choose another share.")
        return parts[0], parts[1]

    def read(self, shard: int) -> Iterator[Packed]:
        """Yield exactly as many places as the shard's size says, in the archive's order.

        Raises:
            DataError: The shard cannot be opened, its server fails, or it has more samples than its size says.
        """
        name, size = shard_name(self.locations[shard]), self.sizes[shard]
        count, reason = 0, "the shard ends before it"
        try:
            for sample in read_tar(self.locations[shard]):
                if count == size:
                    raise DataError(f"{name} holds more than the {size} samples that its size says: count them again.")
                fault = sample.fault or self._label_fault(sample.label)
                yield Packed(f"{name}: {sample.key}", (shard, count), sample.image, sample.label, fault)
                count += 1
        except TarError as error:
            reason = str(error)
        for missing in range(count, size):
            yield Packed(f"{name}: sample {missing + 1} of {size}", (shard, missing), fault=reason, absent=True)

    def _label_fault(self, label: int) -> str:
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            last = "" if self.num_classes is None else f" (0 to {self.num_classes - 1})"
            return f"the label {label} is not a class{last}"
        return ""


def open_shards(
    where: str | Path | Sequence[str | Path],
    *,
    sizes: Mapping[str, int] | None = None,
    num_classes: int | None = None,
) -> Shards:
    """Find tar shards, how many samples each has, and the names of their classes.

    Sizes come from ``sizes``, else from ``sizes.json`` (``{"name.tar": samples}``) or timm's ``_info.json`` beside the
    first shard, else local shards are counted. Names come from ``classes.txt`` (one a line) or ``classes.json`` there.

    Args:
        where: A folder, a path or ``http(s)`` address with ranges in braces (``train-{0000..0146}.tar``), or several.
        sizes: Samples by the shards' file names.
        num_classes: Number of classes; None takes the number of names, if there are names.

    Raises:
        DataError: There are no shards, a local one is missing, an address is of another kind (nothing is ever run in
            a shell), sizes are unknown or invalid, or ``num_classes`` is not the number of names.
        ConfigError: webdataset is not installed.
    """
    webdataset()
    locations = _locations(where)
    classes = _classes(locations[0])
    if num_classes is not None:
        check_integer("num_classes", num_classes, minimum=1)
    if classes is not None and num_classes not in (None, len(classes)):
        raise DataError(f"num_classes={num_classes}, but {len(classes)} class names lie beside the shards.")
    known = sizes if sizes is not None else _sizes(locations)
    if known is None:
        remote = [shard_name(location) for location in locations if is_url(location)]
        if remote:
            raise DataError(
                f"Nobody says how many samples {listed(remote)} have: give sizes, or put a file sizes.json beside them "
                '({"name.tar": samples}; mixerzoo.data.tar.count_images counts a shard).'
            )
        known = {shard_name(location): count_images(location) for location in locations}
    found = tuple(_size(known, shard_name(location)) for location in locations)
    if not sum(found):
        raise DataError(f"{locations[0]}: the shards hold no images.")
    return Shards(tuple(locations), found, classes, len(classes) if classes else num_classes)


class ShardSource:
    """Tar shards as a :class:`mixerzoo.data.source.Source`.

    In each epoch the shards are dealt out in a shuffled order to the readers (every worker of every process), and
    each reader shuffles what it reads through a buffer. An epoch of all readers is every image once; readers whose
    shards have fewer images are ahead of the others. A sample that cannot be used is replaced by the next one of its
    reader, and reported.

    A resumed run opens only the shards that it still needs, and decodes nothing of what was consumed.

    Args:
        shards: From :func:`open_shards`.
        transform: Augments and normalises one image: PIL image -> float32 tensor (channels, height, width).
        buffer_size: Samples that each reader holds in memory, undecoded, to shuffle them.

    Raises:
        ConfigError: ``buffer_size`` is less than 1.
    """

    def __init__(self, shards: Shards, transform: Callable[[Image.Image], Tensor], *, buffer_size: int = 1000):
        check_integer("buffer_size", buffer_size, minimum=1)
        self.shards, self.transform, self.buffer_size = shards, transform, buffer_size
        self.num_images, self.classes = shards.num_images, shards.classes
        self._filled = [shard for shard, size in enumerate(shards.sizes) if size]

    def describe(self, share: Share) -> dict[str, Any]:
        """What the order depends on: another number of readers reads other batches."""
        names = [[shard_name(at), size] for at, size in zip(self.shards.locations, self.shards.sizes, strict=True)]
        return {
            "num_images": self.num_images,
            "classes": self.classes,
            "shards": len(names),
            "names_and_sizes": hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16],
            "buffer_size": self.buffer_size,
            "world_size": share.world_size,
            "workers": max(share.workers, 1),
            "accumulate": share.accumulate,
        }

    def micro_batches(self, share: Share, first_step: int) -> Iterator[MicroBatch]:
        """Yield without end this process's micro-batches from ``first_step`` on.

        Raises:
            DataError: There are fewer shards than readers, a shard cannot be read, or too many samples in a row
                cannot be used.
        """
        count = readers(share.world_size, share.workers)
        if len(self._filled) < count:
            raise DataError(
                f"{share.world_size} processes with {max(share.workers, 1)} workers each are {count} readers, but "
                f"there are {len(self._filled)} shards with images: use fewer workers, or write smaller shards "
                "(mixerzoo.data.tar.write_shards)."
            )
        yield from stream_micro_batches(self, self.transform, share, first_step)

    def samples(self, reader: Reader, skip: int) -> Iterator[Packed]:
        """Yield the reader's places from number ``skip`` on, see :class:`mixerzoo.data.streaming.Stream`."""
        epoch = 0
        while True:
            shards = self._dealt(reader, epoch)
            count = sum(self.shards.sizes[shard] for shard in shards)
            if skip < count:
                yield from self._epoch(reader, epoch, shards, skip)
            skip = max(skip - count, 0)
            epoch += 1

    def _dealt(self, reader: Reader, epoch: int) -> list[int]:
        """The reader's shards of an epoch, in order."""
        order = [self._filled[place] for place in epoch_order(reader.seed, epoch, len(self._filled)).tolist()]
        # Who gets the odd ones out changes with the epoch, so that no reader falls behind for good.
        return order[(reader.index + epoch) % reader.of :: reader.of]

    def _epoch(self, reader: Reader, epoch: int, shards: list[int], skip: int) -> Iterator[Packed]:
        """One reader's epoch from place ``skip`` on; what the shuffle buffer holds then is found out beforehand."""
        sizes = [self.shards.sizes[shard] for shard in shards]
        order = buffered_order(sum(sizes), self.buffer_size, seed=seed_of(reader.seed, epoch, reader.index))
        wanted = torch.ones(len(order), dtype=torch.bool)
        wanted[order[:skip]] = False
        for _, sample in given_out(self._arrivals(shards, wanted), order, skip):
            yield sample._replace(place=(epoch, *sample.place))

    def _arrivals(self, shards: list[int], wanted: Tensor) -> Iterator[tuple[int, Packed]]:
        """The wanted samples of the shards with their numbers; shards without any stay closed."""
        start = 0
        for shard in shards:
            chosen = wanted[start : start + self.shards.sizes[shard]].tolist()
            if any(chosen):
                for offset, sample in enumerate(self.shards.read(shard)):
                    if chosen[offset]:
                        yield start + offset, sample
            start += len(chosen)


class ShardImages(IterableDataset[tuple[Tensor, int]]):
    """Every sample of tar shards once over all processes and their workers, in the shards' order, for evaluation.

    Process r of R reads the shards r, r + R, ...

    Args:
        shards: From :func:`open_shards`.
        transform: PIL image -> float32 tensor (channels, height, width).
        rank: This process.
        world_size: Processes.

    Yields:
        An image (channels, height, width) and its label.

    Raises:
        DataError: While iterating: a shard cannot be read, or a sample cannot be used.
    """

    def __init__(
        self, shards: Shards, transform: Callable[[Image.Image], Tensor], *, rank: int = 0, world_size: int = 1
    ):
        self.shards, self.transform, self.rank, self.world_size = shards, transform, rank, world_size

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for shard in range(self.rank, len(self.shards.locations), self.world_size)[worker::workers]:
            for sample in self.shards.read(shard):
                image = decode(sample)
                if isinstance(image, Fault):
                    raise DataError(f"{image.name} cannot be used for evaluation ({image.reason}): repair the shard.")
                yield self.transform(image), sample.label


def _locations(where: str | Path | Sequence[str | Path]) -> list[str]:
    if isinstance(where, str | Path):
        where = [where]
    found: list[str] = []
    for one in where:
        found += _expanded(one)
    if not found:
        raise DataError("No shards are given.")
    twice = [name for name, count in Counter(map(shard_name, found)).items() if count > 1]
    if twice:
        raise DataError(f"Shards need different file names; these come twice: {listed(twice)}.")
    return found


def _expanded(one: str | Path) -> list[str]:
    text = str(one)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text)
    if scheme and not is_url(text):
        raise DataError(
            f"{text}: shards are read from local paths and http(s) addresses, not from {scheme[1]!r} (and nothing is "
            "run in a shell)."
        )
    if Path(text).is_dir():
        inside = sorted(str(path) for path in Path(text).glob("*.tar"))
        if not inside:
            raise DataError(f"{text} has no .tar files.")
        return inside
    found = _braces(text)
    missing = [at for at in found if not is_url(at) and not Path(at).is_file()]
    if missing:
        raise DataError(f"There is no shard {listed(missing)}.")
    return found


def _braces(pattern: str) -> list[str]:
    import braceexpand  # webdataset brings it

    size = math.prod(abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(\d+)\.\.(\d+)", pattern))
    if size > MAX_SHARDS:
        raise DataError(f"{pattern} stands for {size:,} shards; {MAX_SHARDS:,} are the most.")
    try:
        return list(braceexpand.braceexpand(pattern, escape=False))
    except ValueError:
        raise DataError(f"{pattern}: the braces do not match.") from None


def _beside(location: str, name: str) -> bytes | None:
    """The content of a file in a shard's folder, if it is there."""
    if is_url(location):
        parts = urlsplit(location)
        return fetch(parts._replace(path=parts.path.rpartition("/")[0] + f"/{name}").geturl())
    path = Path(location).with_name(name)
    return path.read_bytes() if path.is_file() else None


def _json_beside(location: str, name: str) -> Any:
    content = _beside(location, name)
    try:
        return None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"The file {name} beside {shard_name(location)} is not JSON: remove or repair it.") from None


def _classes(location: str) -> list[str] | None:
    content = _beside(location, "classes.txt")
    if content is not None:
        names = content.decode("utf-8", "replace").replace("\r\n", "\n").rstrip("\n").split("\n")
    else:
        names = _json_beside(location, "classes.json")
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"The class names beside {shard_name(location)} are not a list of names, one a line.")
    return names


def _sizes(locations: list[str]) -> dict[str, Any] | None:
    """What ``sizes.json`` or timm's ``_info.json`` beside the first shard says."""
    sizes = _json_beside(locations[0], "sizes.json")
    if sizes is None:
        info = _json_beside(locations[0], "_info.json")
        splits = info.get("splits") if isinstance(info, dict) else None
        if not isinstance(splits, dict):
            return None
        known: dict[str, Any] = {}
        for split in (split for split in splits.values() if isinstance(split, dict)):
            known |= dict(zip(split.get("filenames") or [], split.get("shard_lengths") or [], strict=False))
        return known or None
    if not isinstance(sizes, dict):
        raise DataError(f'sizes.json beside {shard_name(locations[0])} is not of the form {{"name.tar": samples}}.')
    return sizes


def _size(known: Mapping[str, Any], name: str) -> int:
    size = known.get(name)
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise DataError(f"The sizes of the shards say {size!r} for {name}, not a number of samples.")
    return size
