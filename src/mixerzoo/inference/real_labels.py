"""ImageNet ReaL: the validation images labelled anew, with all classes that are in them (arXiv 2006.07159)."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mixerzoo.errors import DataError

_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")


@dataclass(frozen=True)
class RealAccuracy:
    """Accuracy by the ReaL labels.

    Attributes:
        top1: Share of the images whose highest score is one of the image's labels.
        num_images: Images that have ReaL labels; the others are left out.
    """

    top1: float
    num_images: int


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """ImageNet-1k classes of each of the 50,000 validation images; empty where annotators agreed on none.

    Source: the file that timm ships, from github.com/google-research/reassessed-imagenet.
    """
    text = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json")
    assert text is not None
    return tuple(tuple(classes) for classes in json.loads(text))


def is_validation_image(file: str | Path) -> bool:
    """Whether the file is named as an image of ImageNet's validation set."""
    match = _FILE.fullmatch(Path(file).name)
    return match is not None and 1 <= int(match[1]) <= len(real_labels())


def real_accuracy(files: Sequence[str | Path], predicted: Sequence[int], outputs: Sequence[int]) -> RealAccuracy:
    """Score predictions by the ReaL labels.

    Args:
        files: The images, named ``ILSVRC2012_val_00000001.JPEG`` and so on, as ImageNet has them.
        predicted: For each image the output with the highest score; -1 is never right.
        outputs: The output of each of the 1,000 ImageNet classes.

    Raises:
        DataError: A file has another name, or no image has a ReaL label.
    """
    labels, hits, count = real_labels(), 0, 0
    for file, output in zip(files, predicted, strict=True):
        accepted = {outputs[i] for i in labels[_number(Path(file)) - 1]}
        count += bool(accepted)
        hits += output in accepted
    if not count:
        raise DataError(f"None of the {len(files)} images has ReaL labels: annotators agreed on none for them.")
    return RealAccuracy(hits / count, count)


def _number(file: Path) -> int:
    """Which validation image this is, from 1."""
    if not is_validation_image(file):
        raise DataError(
            f"{file} is not named as an image of ImageNet's validation set (ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{len(real_labels()):08d}.JPEG), so its ReaL labels cannot be looked up."
        )
    return int(file.stem[-8:])
