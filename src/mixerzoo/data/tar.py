"""Tar shards in WebDataset's layout: members that share a name up to its first dot are one sample.

Members are read as data, one after another; nothing is extracted, decompressed or unpickled.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast, runtime_checkable

from mixerzoo.atomic import write_atomically
from mixerzoo.data.indexed import Labelled
from mixerzoo.data.remote import RemoteFile, is_url, url_name
from mixerzoo.data.source import Fault, epoch_order
from mixerzoo.errors import ConfigError, DataError, ImageError

IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")
"""What an image's member may be called behind the first dot."""

LABEL_KINDS = ("cls", "json")
"""The same for the label: a number as text, or a JSON object with the number under ``"label"`` or ``"cls"``."""

MAX_MEMBER_BYTES = 1 << 27
"""Largest member that is read, in bytes."""


class TarError(Exception):
    """What is wrong with the archive from here on; a clause."""


class TarSample(NamedTuple):
    """One sample as it lies in the archive.

    Attributes:
        key: Its members' common name.
        image: The image file's bytes.
        label: Class index.
        fault: Why it cannot be used, or empty.
    """

    key: str
    image: bytes = b""
    label: int = -1
    fault: str = ""


def shard_name(location: str) -> str:
    """The last part of a path or URL."""
    return url_name(location) if is_url(location) else Path(location).name


def read_tar(location: str) -> Iterator[TarSample]:
    """Yield the samples of a shard in order: those groups of members that have an image.

    Args:
        location: A local path, or an ``http`` or ``https`` address.

    Raises:
        TarError: The rest of the shard is damaged or missing.
        DataError: The shard cannot be opened or its server fails, or a member's name comes twice.
    """
    for group in _samples(location, with_data=True):
        yield _unpack(group)


def count_images(location: str) -> int:
    """Number of samples of a shard; a damaged rest counts as one.

    Of a local file only the members' headers are read; a remote one comes over the network as a whole.

    Raises:
        DataError: The shard cannot be opened or its server fails, or a member's name comes twice.
    """
    count = 0
    try:
        for _ in _samples(location, with_data=False):
            count += 1
    except TarError:
        count += 1
    return count


def _samples(location: str, *, with_data: bool) -> Iterator[dict[str, Any]]:
    group_by_keys = webdataset().tariterators.group_by_keys
    name = shard_name(location)
    damage: list[TarError] = []  # told at the end, so that the sample before it is not lost
    members = _until_damage(_members(location, with_data), damage)
    try:
        for group in group_by_keys(members, suffixes={*IMAGE_KINDS, *LABEL_KINDS}):
            if any(kind in group for kind in IMAGE_KINDS):
                yield group
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} has a member twice ({error.args[0]}): every sample needs a name of its own.") from None
    if damage:
        raise damage[0]


def _until_damage(members: Iterator[dict[str, Any]], damage: list[TarError]) -> Iterator[dict[str, Any]]:
    try:
        yield from members
    except TarError as error:
        damage.append(error)


def _members(location: str, with_data: bool) -> Iterator[dict[str, Any]]:
    """The regular members with their content, None for one that is too large, in webdataset's form."""
    with ExitStack() as stack:
        source = stack.enter_context(_open(location))
        try:
            seekable = not isinstance(source, RemoteFile)
            size = os.path.getsize(location) if seekable else 0
            archive = stack.enter_context(
                tarfile.open(fileobj=cast(IO[bytes], source), mode="r:" if seekable else "r|", bufsize=1 << 18)
            )
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would remember every member
                if not member.isreg():
                    continue
                if seekable and member.offset_data + member.size > size:
                    raise TarError("the shard is truncated")
                data: bytes | None = b""
                if with_data:
                    file = archive.extractfile(member) if member.size <= MAX_MEMBER_BYTES else None
                    data = file.read() if file else None
                yield {"fname": member.name, "data": data, "__url__": location}
            if seekable:
                _check_end(cast(IO[bytes], source), archive.offset)
        except (DataError, TarError):
            raise
        except Exception as error:  # tarfile raises whatever it runs into in a damaged archive
            raise TarError(f"the shard is truncated, damaged or compressed: {error}") from None


def _open(location: str) -> IO[bytes] | RemoteFile:
    if is_url(location):
        return RemoteFile(location)
    try:
        return open(location, "rb")
    except OSError as error:
        raise DataError(f"The shard {location} cannot be read ({error.strerror or error}).") from None


def _check_end(source: IO[bytes], offset: int) -> None:
    """An archive ends with a block of zeros; tarfile takes any block that it cannot read for the end."""
    source.seek(offset)
    block = source.read(tarfile.BLOCKSIZE)
    if not block or block.strip(b"\0"):
        raise TarError("the shard is truncated or damaged: it has no end mark")


def _unpack(group: dict[str, Any]) -> TarSample:
    key = str(group["__key__"])
    image = next(group[kind] for kind in IMAGE_KINDS if kind in group)
    if image is None:
        return TarSample(key, fault=f"larger than {MAX_MEMBER_BYTES:,} bytes")
    try:
        return TarSample(key, image, _label(group))
    except ValueError as error:
        return TarSample(key, fault=str(error))


def _label(group: dict[str, Any]) -> int:
    if "cls" in group:
        text = (group["cls"] or b"")[:32].decode("ascii", "replace").strip()
        if not text.removeprefix("-").isdigit():
            raise ValueError(f"the label {text!r} is not a whole number")
        return int(text)
    if "json" not in group:
        raise ValueError("there is no label (.cls or .json)")
    try:
        fields = json.loads(group["json"] or b"")
    except (ValueError, RecursionError):
        raise ValueError("its .json is not JSON") from None
    label = fields.get("label", fields.get("cls")) if isinstance(fields, dict) else None
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError('its .json has no whole number under "label" or "cls"')
    return label


@runtime_checkable
class HasOriginals(Protocol):
    """Labelled images whose files' bytes are at hand, too."""

    def original(self, index: int) -> bytes | None:
        """The image file's bytes, or None."""
        ...


@dataclass(frozen=True)
class Written:
    """What :func:`write_shards` wrote.

    Attributes:
        shards: The files, in order.
        num_images: Samples in all of them.
        faults: Images that cannot be read and are not in them.
    """

    shards: list[Path]
    num_images: int
    faults: list[Fault]


def write_shards(
    data: Labelled, folder: str | Path, *, images_per_shard: int = 5000, prefix: str = "shard", seed: int | None = 0
) -> Written:
    """Pack labelled images into tar shards, with ``sizes.json`` and (if the classes have names) ``classes.txt``.

    JPEG, PNG and WebP files are copied as they are; other images are stored as PNG. The images are shuffled, because a
    stream mixes only neighbouring ones. A shard is there as a whole or not at all, and ``sizes.json`` comes last.

    Args:
        data: The images.
        folder: Is created; may hold no shards of this ``prefix`` yet.
        images_per_shard: Images of each shard but the last.
        prefix: How the files' names begin: ``prefix-000000.tar``.
        seed: Of the shuffled order; None keeps the order of ``data``.

    Raises:
        ConfigError: ``images_per_shard`` is less than 1.
        DataError: There are shards already, or no image can be read.
        StorageError: A file cannot be written.
    """
    if images_per_shard < 1:
        raise ConfigError(f"images_per_shard={images_per_shard} must be at least 1.")
    folder = Path(folder)
    if (folder / "sizes.json").exists() or any(folder.glob(f"{prefix}-*.tar")):
        raise DataError(f"{folder} has shards already: choose another folder, or remove them first.")
    order = range(len(data)) if seed is None else epoch_order(seed, 0, len(data)).tolist()
    faults: list[Fault] = []
    samples = _packed(data, order, faults)
    sizes: dict[str, int] = {}
    for number in itertools.count():
        shard = list(itertools.islice(samples, images_per_shard))
        if not shard:
            break
        name = f"{prefix}-{number:06d}.tar"
        write_atomically(folder / name, partial(_write_tar, samples=shard))
        sizes[name] = len(shard)
    if not sizes:
        raise DataError(f"None of the {len(data)} images can be read.")
    if data.classes is not None:
        (folder / "classes.json").unlink(missing_ok=True)
        names = "".join(f"{name}\n" for name in data.classes)
        write_atomically(folder / "classes.txt", lambda path: path.write_text(names, encoding="utf-8"))
    write_atomically(folder / "sizes.json", lambda path: path.write_text(json.dumps(sizes, indent=1), encoding="utf-8"))
    return Written([folder / name for name in sizes], sum(sizes.values()), faults)


def _packed(data: Labelled, order: Iterable[int], faults: list[Fault]) -> Iterator[dict[str, Any]]:
    """The samples as webdataset writes them; what cannot be read is added to ``faults``."""
    for index in order:
        name = data.name(index)
        try:
            image, label = data.read(index)
        except ImageError as error:
            faults.append(Fault(name, str(error).removeprefix(f"{name}: ")))
            continue
        content = _original(data, index)
        kind = _kind(content)
        if not kind:
            buffer = BytesIO()
            image.save(buffer, "PNG")
            content, kind = buffer.getvalue(), "png"
        yield {"__key__": f"{index:08d}", kind: content, "cls": str(label).encode()}


def _original(data: Labelled, index: int) -> bytes:
    """The image file as it is, or nothing."""
    if isinstance(data, HasOriginals):
        return data.original(index) or b""
    path = Path(data.name(index))
    return path.read_bytes() if path.is_file() else b""


def _kind(content: bytes) -> str:
    """What the content is by its first bytes, or nothing."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return "jpg" if content[:3] == b"\xff\xd8\xff" else "png" if content[:8] == b"\x89PNG\r\n\x1a\n" else ""


def _write_tar(path: Path, samples: list[dict[str, Any]]) -> None:
    with path.open("wb") as file:
        writer = webdataset().TarWriter(file, user="", group="", encoder=False, mtime=0)
        for sample in samples:
            writer.write(sample)
        writer.close()


def webdataset() -> Any:
    """The library, with the module that groups members.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import webdataset  # type: ignore[import-untyped]
        import webdataset.tariterators  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError("Tar shards need webdataset: pip install 'mixerzoo[train]'.") from None
    return webdataset
