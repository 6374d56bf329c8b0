"""Images with any number of classes each: average precision.

N images, K classes. A multi-label model gives an independent probability for each class, the sigmoid of its logit.
Average precision depends on the order of the scores alone, so logits are ranked as they are: the sigmoid would round
large ones to the same number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mixerzoo.data.folder import EVAL_SPLITS
from mixerzoo.data.images import load_image
from mixerzoo.errors import DataError, ImageError, LabelsUnknownError, listed
from mixerzoo.factory import create_transform
from mixerzoo.inference.scoring import EvalOptions, agreed, collect
from mixerzoo.label_names import labels

LABEL_FILES = ("labels.csv", "labels.json")


@dataclass(frozen=True)
class MultiLabel:
    """Average precision on a multi-label dataset, all as fractions.

    Attributes:
        classes: Names of the K classes in the order of the outputs.
        average_precision: Of each class; None for a class without a single image.
        positives: Images of each class.
        macro: Mean over the classes that have images.
        micro: Of all N * K pairs of image and class ranked together.
        num_images: N.
    """

    classes: tuple[str, ...]
    average_precision: tuple[float | None, ...]
    positives: tuple[int, ...]
    macro: float
    micro: float
    num_images: int


def average_precision(scores: Tensor, targets: Tensor) -> float | None:
    """Average precision: the mean, over the positives, of the precision among all that score at least as high.

    It is the sum over distinct scores of (gain in recall) x (precision), without interpolation; equal scores count as
    one threshold, so their order does not matter.

    Args:
        scores: (N,) finite.
        targets: (N,) of 0 and 1, or bool.

    Returns:
        A fraction, or None without positives, where it is not defined.
    """
    scores, order = scores.sort(descending=True)
    found = targets.to(torch.int64)[order].cumsum(0)
    if not len(found) or not int(found[-1]):
        return None
    last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])  # of each run of equal scores
    found, ranked = found[last].double(), torch.arange(1, len(scores) + 1, dtype=torch.float64)[last]
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return float((gained * found / ranked).sum() / found[-1])


def multi_label_scores(scores: Tensor, targets: Tensor, classes: Sequence[str]) -> MultiLabel:
    """Average precision of every class, and over all.

    Args:
        scores: (N, K) finite.
        targets: (N, K) of 0 and 1, or bool.
        classes: K names.

    Raises:
        DataError: No image has a class.
    """
    each = tuple(average_precision(scores[:, k], targets[:, k]) for k in range(len(classes)))
    defined = [value for value in each if value is not None]
    micro = average_precision(scores.flatten(), targets.flatten())
    if micro is None:
        raise DataError("Not a single image has a class, so there is no precision to measure.")
    positives = tuple(int(n) for n in targets.long().sum(dim=0))
    return MultiLabel(tuple(classes), each, positives, sum(defined) / len(defined), micro, len(scores))


class MultiLabelFolder(Dataset[tuple[Tensor, Tensor]]):
    """The images that a label file names, as pairs of an image and its classes (K,) of 0 and 1.

    ``labels.csv`` has a line for each image: its path below the file's folder, then the names of its classes (none,
    one or more; quoted where they hold commas). ``labels.json`` is an object from paths to lists of names. Images are
    read as the model's preprocessing wants them; a ``.npy`` file holds what the model takes, of shape (channels,
    height, width), for data that image formats cannot hold.

    Args:
        model: Whose preprocessing and class names to use.
        root: Folder with a split's folder with the label file, or with the label file itself.
        split: Name of the split; None for the first of ``test``, ``val`` and ``validation`` that there is.

    Attributes:
        classes: Names of the classes in the order of the outputs: the model's, or sorted where it has none.
        files: The images.

    Raises:
        DataError: There is no label file, it is malformed, names a file that is not there, or a class that the model
            does not know.
    """

    def __init__(self, model: nn.Module, root: str | Path, split: str | None = None):
        source = _label_file(Path(root), split)
        described = _read_json(source) if source.suffix == ".json" else _read_csv(source)
        if not described:
            raise DataError(f"{source} names no images.")
        self.files = [source.parent / name for name in described]
        self.classes = _classes(model, described, source)
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            raise DataError(f"{source} names files that are not there: {listed(missing)}.")
        index = {name: k for k, name in enumerate(self.classes)}
        self._targets = [[index[name] for name in names] for names in described.values()]
        self._transform = create_transform(model)
        config: Any = getattr(model, "config")  # noqa: B009
        self._shape = (config.in_chans, *config.image_hw)
        self._load = partial(load_image, mode="L" if config.in_chans == 1 else "RGB")

    def __len__(self) -> int:
        """N."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read one image."""
        path = self.files[index]
        image = load_array(path, self._shape) if path.suffix == ".npy" else self._image(path)
        target = torch.zeros(len(self.classes), dtype=torch.int8)
        target[self._targets[index]] = 1
        return image, target

    def _image(self, path: Path) -> Tensor:
        if self._shape[0] not in (1, 3):
            raise ImageError(f"{path}: the model takes {self._shape[0]} channels, which only .npy files can give.")
        return self._transform(self._load(path))


def load_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a NumPy array of numbers of just this shape, as float32.

    Raises:
        ImageError: It is no such file, or of another shape. The message begins with the file's name.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # the shape is known before the values are read
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(f"{path}: not a NumPy array ({' '.join(str(error).split())}).") from None
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise ImageError(f"{path}: an array of {array.dtype} {array.shape}; the model takes numbers of shape {shape}.")
    return torch.from_numpy(np.array(array, dtype=np.float32))


def evaluate_multi_label(
    model: nn.Module, data: str | Path, *, split: str | None = None, options: EvalOptions | None = None
) -> MultiLabel:
    """Average precision of a model on a folder with a label file; see :class:`MultiLabelFolder`.

    Args:
        model: A classifier whose outputs are independent classes.
        data: The folder.
        split: Name of the split.
        options: How to run.

    Raises:
        DataError: See :class:`MultiLabelFolder`; or an image cannot be read.
        WeightsError: A score is not finite.
    """
    options = options or EvalOptions()
    dataset = agreed(options.world, lambda: MultiLabelFolder(model, data, split))
    scores, targets = collect(model, dataset, options, what="scores")
    return multi_label_scores(scores, targets, dataset.classes)


def _label_file(root: Path, split: str | None) -> Path:
    folders = [root / name for name in (EVAL_SPLITS if split is None else (split,))]
    folders += [root] if split is None else []
    found = next((folder / name for folder in folders for name in LABEL_FILES if (folder / name).is_file()), None)
    if found is None:
        if not root.is_dir():
            raise DataError(f"There is no folder {root}.")
        searched = ", ".join(str(folder / LABEL_FILES[0]) for folder in folders)
        raise DataError(
            f"There is no label file; looked for {searched} (or {LABEL_FILES[1]} there). A line of {LABEL_FILES[0]} is "
            "an image and its classes, such as: patches/1.png,sea,beach"
        )
    return found


def _read_csv(path: Path) -> dict[str, list[str]]:
    described: dict[str, list[str]] = {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True))
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error}).") from None
    for row in rows:
        cells = [cell.strip() for cell in row]
        if any(cells) and (described or cells[0].lower() != "file"):  # a line of headings may come first
            _add(described, cells[0], [cell for cell in cells[1:] if cell], path)
    return described


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}).") from None
    described: dict[str, list[str]] = {}
    for name, classes in content.items() if isinstance(content, dict) else [("", None)]:
        if not isinstance(classes, list) or not all(isinstance(text, str) for text in classes):
            raise DataError(f'{path} must be an object from file names to lists of class names: {{"a.png": ["sea"]}}.')
        _add(described, name, classes, path)
    return described


def _add(described: dict[str, list[str]], name: str, classes: list[str], source: Path) -> None:
    if name in described:
        raise DataError(f"{source} names {name} twice.")
    described[name] = classes


def _classes(model: nn.Module, described: Mapping[str, list[str]], source: Path) -> list[str]:
    used = sorted({name for names in described.values() for name in names})
    count = int(getattr(model, "num_classes", 0))
    try:
        known = labels(model)
    except LabelsUnknownError:
        if len(used) == count:
            return used
        raise DataError(
            f"{source} names {len(used)} classes, the model has {count} outputs without names: they must agree."
        ) from None
    if unknown := set(used) - set(known):
        raise DataError(f"{source} names classes that the model does not know: {listed(unknown)}.")
    return known
