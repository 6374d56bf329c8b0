"""Image folders: ``root/<split>/<class>/*.jpg``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torchvision.datasets import ImageFolder

from mixerzoo.data.images import IMAGE_SUFFIXES, load_image
from mixerzoo.errors import DataError, ImageError, listed

_T = TypeVar("_T")

TRAIN_SPLITS = ("train",)
EVAL_SPLITS = ("test", "val", "validation")


class NoSplitFolderError(DataError):
    """A folder that has none of the splits asked for."""


def open_folder(
    root: str | Path,
    splits: tuple[str, ...],
    transform: Callable[[Image.Image], Any] | None = None,
    classes: list[str] | None = None,
) -> ImageFolder:
    """Open the first of ``splits`` that exists below ``root`` as a dataset of (transformed image, class index).

    Args:
        root: Folder that holds one folder a split.
        splits: Split names in order of preference, such as :data:`EVAL_SPLITS`.
        transform: Applied to each RGB image; None leaves them as they are.
        classes: Expected class folders in label order; None takes what is there, sorted.

    Raises:
        DataError: The folder or every split is missing, there are no images, or the classes are others than expected.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    folder = next((root / split for split in splits if (root / split).is_dir()), None)
    if folder is None:
        raise NoSplitFolderError(
            f"{root} has no folder named {' or '.join(splits)}: expected images at {root}/{splits[0]}/<class>/*.jpg."
        )
    try:
        dataset = ImageFolder(
            str(folder),
            transform=transform,
            loader=load_image,
            is_valid_file=lambda name: Path(name).suffix.lower() in IMAGE_SUFFIXES,
        )
    except FileNotFoundError:
        empty = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not _has_images(path)]
        if not empty:
            raise DataError(f"{folder} has no class folders: expected images at {folder}/<class>/*.jpg.") from None
        raise DataError(
            f"{folder} has class folders without images ({listed(empty)}): remove them, or add images."
        ) from None
    if classes is not None and dataset.classes != classes:
        difference = _difference(dataset.classes, classes)
        raise DataError(f"The class folders in {folder} are not those expected: {difference}.")
    return dataset


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))


def in_one_line(batches: Iterable[_T]) -> Generator[_T]:
    """Iterate; whatever is wrong with the data is said in one line, also by a worker process, which adds a traceback.

    Raises:
        DataError: An image cannot be read; the message names the file. Or the data itself says that it is unusable.
    """
    try:
        yield from batches
    except (ImageError, DataError) as error:
        kind = type(error)
        reason = str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__name__}: ")
        raise DataError(f"{reason} Remove or replace the file." if kind is ImageError else reason) from None


def _difference(names: list[str], expected: list[str]) -> str:
    missing, more = set(expected) - set(names), set(names) - set(expected)
    if not missing and not more:
        return "the order differs"
    parts = [(missing, "missing"), (more, "not expected")]
    return ", ".join(f"{listed(some)} {'is' if len(some) == 1 else 'are'} {what}" for some, what in parts if some)
