"""Data sets of Hugging Face's ``datasets``: from the Hub, a local folder or Parquet files; whole or streamed.

Only data is read: ``datasets`` 4 and later run no scripts of a data set.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from mixerzoo.checks import check_integer
from mixerzoo.data.images import decode_image
from mixerzoo.data.source import MicroBatch, Share, epoch_order, seed_of
from mixerzoo.data.streaming import Packed, Reader, buffered_order, given_out, readers, stream_micro_batches
from mixerzoo.errors import ConfigError, DataError, ImageError, did_you_mean, listed

_OLDEST = 4  # earlier ones may run code that comes with a data set

_FILE_SYSTEMS = frozenset({"file", "hf", "http", "https", "tar", "zip"})
"""Where a row may say that its image lies, beside plain paths."""


class NoSplitError(DataError):
    """A data set that is there and has no split of that name."""


class _Columns(NamedTuple):
    image: str
    label: str
    classes: list[str] | None


class _Row(NamedTuple):
    file: int
    number: int  # within the file
    values: dict[str, Any]


class HubImages:
    """A split with random access, as :class:`mixerzoo.data.indexed.Labelled`; from :func:`open_hub_dataset`.

    Attributes:
        classes: Names of the classes in label order, or None where labels are plain numbers.
    """

    def __init__(self, rows: Any, columns: _Columns, name: str):
        self._rows, self._columns, self._name = rows, columns, name
        self.classes = columns.classes

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Decode one image.

        Raises:
            ImageError: It cannot be decoded, or has no valid label.
        """
        row, name = self._rows[index], self.name(index)
        label, fault = _label(row[self._columns.label], self.classes)
        if fault:
            raise ImageError(f"{name}: {fault}.")
        return decode_image(_content(row[self._columns.image], name), name), label

    def name(self, index: int) -> str:
        """The data set's name and the row."""
        return f"{self._name}[{index}]"

    def original(self, index: int) -> bytes | None:
        """The image file's bytes."""
        return _content(self._rows[index][self._columns.image], self.name(index))


class HubStreamSource:
    """A streamed split as a :class:`mixerzoo.data.source.Source`; from :func:`open_hub_stream`.

    Files are shuffled anew in every epoch, and rows through a buffer. The files are dealt out to the readers (every
    worker of every process) if each gets the same number, and at least two; else each reader goes through all files and
    takes every n-th row. Each reader's epoch has ``num_images // readers`` rows: where a reader's files have
    more, the rest is left out, and where they have fewer, it begins anew with them.

    A resumed run reads the rows of its epoch that were consumed again, but decodes none of them.

    Attributes:
        num_images: Images of one epoch.
        classes: Names of the classes in label order, or None where labels are plain numbers.
    """

    def __init__(
        self,
        rows: Any,
        columns: _Columns,
        name: str,
        transform: Callable[[Image.Image], Tensor],
        *,
        num_images: int,
        buffer_size: int,
    ):
        self._rows, self._columns, self._name, self._transform = rows, columns, name, transform
        self.num_images, self.classes, self.buffer_size = num_images, columns.classes, buffer_size

    def describe(self, share: Share) -> dict[str, Any]:
        """What the order depends on: another number of readers reads other batches."""
        return {
            "name": self._name,
            "files": self._rows.num_shards,
            "num_images": self.num_images,
            "classes": self.classes,
            "buffer_size": self.buffer_size,
            "world_size": share.world_size,
            "workers": max(share.workers, 1),
            "accumulate": share.accumulate,
        }

    def micro_batches(self, share: Share, first_step: int) -> Iterator[MicroBatch]:
        """Yield without end this process's micro-batches from ``first_step`` on.

        Raises:
            DataError: There are fewer images than readers, the data cannot be read, or too many samples in a row
                cannot be used.
        """
        count = readers(share.world_size, share.workers)
        if self.num_images < count:
            raise DataError(f"{self._name} has {self.num_images} images, fewer than its {count} readers.")
        yield from stream_micro_batches(self, self._transform, share, first_step)

    def samples(self, reader: Reader, skip: int) -> Iterator[Packed]:
        """Yield the reader's places from number ``skip`` on, see :class:`mixerzoo.data.streaming.Stream`."""
        quota = self.num_images // reader.of
        epoch, skip = divmod(skip, quota)
        while True:
            order = buffered_order(quota, self.buffer_size, seed=seed_of(reader.seed, epoch, reader.index))
            for place, row in given_out(self._arrivals(reader, epoch), order, skip):
                yield self._pack(row, (epoch, reader.index, place))
            epoch, skip = epoch + 1, 0

    def _arrivals(self, reader: Reader, epoch: int) -> Iterator[tuple[int, _Row]]:
        """The numbered rows of one reader's epoch, images as bytes; they begin anew when they end."""
        count = 0
        while True:
            before = count
            try:
                for row in self._rows_of(reader, epoch):
                    yield count, row
                    count += 1
            except Exception as error:  # of the network, the file system or the file format
                raise DataError(f"{self._name} cannot be read ({_one_line(error)}).") from None
            if count == before:
                raise DataError(
                    f"{self._name} has no rows for reader {reader.index + 1} of {reader.of}: use fewer workers."
                )

    def _rows_of(self, reader: Reader, epoch: int) -> Iterator[_Row]:
        files = self._rows.num_shards
        order = epoch_order(reader.seed, epoch, files).tolist()
        # With one file each, what is left out of a long file would be the same rows in every epoch.
        alone = reader.of == 1 or (files % reader.of == 0 and files >= 2 * reader.of)
        rows = self._rows_in(order[reader.index :: reader.of] if alone else order)
        return rows if alone else itertools.islice(rows, (reader.index + epoch) % reader.of, None, reader.of)

    def _rows_in(self, files: list[int]) -> Iterator[_Row]:
        for file in files:
            only = self._rows.shard(num_shards=self._rows.num_shards, index=file)
            rows = only.iter(batch_size=1)  # iter(only) would divide the rows among the loader's workers again
            for number, batch in enumerate(rows):
                yield _Row(file, number, {column: values[0] for column, values in batch.items()})

    def _pack(self, row: _Row, place: tuple[int, ...]) -> Packed:
        label, fault = _label(row.values[self._columns.label], self.classes)
        cell = row.values[self._columns.image]
        path = cell.get("path") if isinstance(cell, dict) else None
        name = f"{self._name}: row {row.number} of file {row.file}{f' ({path})' if path else ''}"
        if fault:
            return Packed(name, place, fault=fault)
        try:
            return Packed(name, place, _content(cell, name), label)
        except ImageError as error:
            return Packed(name, place, fault=str(error).removeprefix(f"{name}: "))


def open_hub_dataset(
    name: str, split: str, *, image_column: str | None = None, label_column: str | None = None
) -> HubImages:
    """Open a split with random access; a data set of the Hub is downloaded to its cache first.

    Args:
        name: ``"hf:owner/name"`` or ``"hf:owner/name:config"`` (``"hf:"`` may be left out), a local folder (of
            Parquet files or images), or a local ``.parquet`` file.
        split: Such as ``"train"``.
        image_column: Column of the images; None finds the only one of that type.
        label_column: Column of the class indices; None finds the only one of type ``ClassLabel``.

    Raises:
        DataError: There is no such data set, configuration, split or column, or the Hub cannot be reached.
        ConfigError: ``datasets`` is not installed, or too old.
    """
    rows = _load(name, split, streaming=False)
    columns = _columns(rows, name, image_column, label_column)
    return HubImages(_undecoded(rows, columns), columns, _plain(name))


def open_hub_stream(
    name: str,
    split: str,
    transform: Callable[[Image.Image], Tensor],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    num_images: int | None = None,
    buffer_size: int = 1000,
) -> HubStreamSource:
    """Open a split that is read as it comes over the network, or from local files without a copy in a cache.

    Args:
        name: As for :func:`open_hub_dataset`.
        split: Such as ``"train"``.
        transform: Augments and normalises one image: PIL image -> float32 tensor (channels, height, width).
        image_column: As for :func:`open_hub_dataset`.
        label_column: The same.
        num_images: Rows of the split; None takes the number that the data set states.
        buffer_size: Rows that each reader holds in memory, undecoded, to shuffle them.

    Raises:
        DataError: As for :func:`open_hub_dataset`, or the number of rows is not known.
        ConfigError: ``datasets`` is not installed, or too old, or a number is less than 1.
    """
    check_integer("buffer_size", buffer_size, minimum=1)
    rows = _load(name, split, streaming=True)
    columns = _columns(rows, name, image_column, label_column)
    if num_images is None:
        stated = (rows.info.splits or {}).get(split)
        num_images = stated.num_examples if stated else None
    if not num_images:
        raise DataError(f"{_plain(name)} does not say how many rows its split {split!r} has: give num_images.")
    check_integer("num_images", num_images, minimum=1)
    return HubStreamSource(
        _undecoded(rows, columns), columns, _plain(name), transform, num_images=num_images, buffer_size=buffer_size
    )


def _plain(name: str) -> str:
    return name.removeprefix("hf:")


def _load(name: str, split: str, *, streaming: bool) -> Any:
    datasets = _library()
    plain = _plain(name)
    arguments: dict[str, Any] = {}
    if not name.startswith("hf:") and Path(plain).suffix == ".parquet":
        if not Path(plain).is_file():
            raise DataError(f"There is no file {plain}.")
        target, arguments = "parquet", {"data_files": {split: plain}}
    elif not name.startswith("hf:") and Path(plain).exists():
        target = plain
    else:
        target, _, config = plain.partition(":")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", target):
            raise DataError(f"{name!r} is no local path and no name of a data set on the Hub (hf:owner/name).")
        arguments = {"name": config} if config else {}
    try:
        return datasets.load_dataset(target, split=split, streaming=streaming, **arguments)
    except Exception as error:  # of many kinds; each becomes one line
        raise _explained(error, plain, split) from None


def _library() -> Any:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError("Data sets of the Hub need datasets: pip install 'mixerzoo[train]'.") from None
    if int(datasets.__version__.partition(".")[0]) < _OLDEST:
        raise ConfigError(
            f"datasets {datasets.__version__} may run code that comes with a data set: "
            f"pip install 'datasets>={_OLDEST}'."
        )
    return datasets


def _explained(error: Exception, name: str, split: str) -> DataError:
    import datasets

    text = _one_line(error)
    there = re.search(r"(?:Should be one of|Available splits:) \[(.*?)\]", text)
    if there:
        return NoSplitError(f"{name} has no split {split!r}: it has {there[1]}.")
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return DataError(f"There is no data set {name!r} on the Hub, or it needs a login (hf auth login).")
    if isinstance(error, ConnectionError) or "offline" in text.lower():
        return DataError(f"{name} is not in the cache and the Hub cannot be reached ({text}).")
    return DataError(f"{name} cannot be opened ({text}).")


def _one_line(error: Exception) -> str:
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _columns(rows: Any, name: str, image_column: str | None, label_column: str | None) -> _Columns:
    import datasets

    plain, features = _plain(name), rows.features
    if features is None:
        raise DataError(f"{plain} does not state the types of its columns: it cannot be streamed, open it as a whole.")
    image = _column(features, plain, image_column, datasets.Image, "image")
    label = _column(features, plain, label_column, datasets.ClassLabel, "label")
    kind = features[label]
    if isinstance(kind, datasets.ClassLabel):
        return _Columns(image, label, list(kind.names) if kind.names else None)
    if not str(getattr(kind, "dtype", "")).startswith(("int", "uint")):
        raise DataError(f"Column {label!r} of {plain} is {kind}: expected class indices (ClassLabel or an integer).")
    return _Columns(image, label, None)


def _column(features: Any, name: str, given: str | None, kind: type, what: str) -> str:
    if given is not None:
        if given not in features:
            raise DataError(
                f"{name} has no column {given!r}.{did_you_mean(given, features)} It has {listed(features, limit=12)}."
            )
        return given
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) == 1:
        return found[0]
    state = f"several {what} columns ({listed(found)})" if found else f"no column of type {kind.__name__}"
    raise DataError(f"{name} has {state}; it has {listed(features, limit=12)}: give {what}_column.")


def _undecoded(rows: Any, columns: _Columns) -> Any:
    """The two columns, images as the bytes of their files."""
    import datasets

    chosen = rows.select_columns([columns.image, columns.label])
    try:
        return chosen.cast_column(columns.image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"Column {columns.image!r} does not hold images ({_one_line(error)}).") from None


def _content(cell: Any, name: str) -> bytes:
    """The image file's bytes, which are in the row or in a file that it names."""
    if not isinstance(cell, dict):
        raise ImageError(f"{name}: there is no image.")
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    path = cell.get("path")
    if not path:
        raise ImageError(f"{name}: there is no image.")
    if not set(re.findall(r"([^:/]*)://", path)) <= _FILE_SYSTEMS:
        raise ImageError(f"{name}: {path} is in none of the places that are read ({listed(_FILE_SYSTEMS, limit=9)}).")
    try:
        from fsspec import open as open_anywhere  # type: ignore[import-untyped]  # it comes with datasets

        with open_anywhere(path, "rb") as file:
            content: bytes = file.read()
    except Exception as error:  # of the file system that the path names
        raise ImageError(f"{name}: {path} cannot be read ({_one_line(error)}).") from None
    return content


def _label(value: Any, classes: list[str] | None) -> tuple[int, str]:
    """The class index, and what is wrong with it or nothing."""
    if isinstance(value, bool) or not isinstance(value, int):
        return -1, "there is no label"
    if value < 0 or (classes is not None and value >= len(classes)):
        return value, f"the label {value} is not a class"
    return value, ""
