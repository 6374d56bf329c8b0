"""Opening what a run learns from, by its name: an image folder, tar shards, a data set of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixerzoo.data.folder import EVAL_SPLITS, TRAIN_SPLITS, open_folder
from mixerzoo.data.indexed import FolderImages, IndexedSource, Labelled, Transformed, hold_out
from mixerzoo.data.transforms import eval_transform, train_transform
from mixerzoo.train.loop import Data
from mixerzoo.train.recipe import Recipe


def open_data(where: str | Path, recipe: Recipe, preprocessing: dict[str, Any]) -> Data:
    """Open training and evaluation images.

    Args:
        where: A folder with ``train/<class>/*.jpg`` and ``test`` or ``val``.
        recipe: Its augmentation and ``holdout`` are used.
        preprocessing: timm's data config of the model.

    Raises:
        DataError: A split is missing, empty, or has other classes than the other.
    """
    folder = open_folder(where, TRAIN_SPLITS, train_transform(preprocessing, recipe.augmentation))
    return _with_holdout(FolderImages(folder), where, recipe, preprocessing)


def _with_holdout(images: Labelled, where: str | Path, recipe: Recipe, preprocessing: dict[str, Any]) -> Data:
    judge = eval_transform(preprocessing)
    if recipe.holdout:
        images, held_out = hold_out(images, recipe.holdout)
        evaluation: Any = Transformed(held_out, judge)
    else:
        evaluation = open_folder(where, EVAL_SPLITS, judge, images.classes)
    return Data(IndexedSource(images, train_transform(preprocessing, recipe.augmentation)), evaluation)
