"""Opening what a run learns from, by its name: image folders, tar shards, data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mixerzoo.data.folder import EVAL_SPLITS, TRAIN_SPLITS, NoSplitFolderError, open_folder
from mixerzoo.data.hub_datasets import NoSplitError, open_hub_dataset, open_hub_stream
from mixerzoo.data.indexed import FolderImages, IndexedSource, Labelled, Transformed, hold_out
from mixerzoo.data.remote import is_url
from mixerzoo.data.shards import ShardImages, ShardSource, open_shards
from mixerzoo.data.source import Source
from mixerzoo.data.transforms import eval_transform, train_transform
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.train.recipe import Recipe

_HUB = "hf:"


@dataclass(frozen=True)
class Data:
    """What a run learns from and is judged by.

    Attributes:
        train: The training split.
        evaluation: Labelled images for evaluation, a PyTorch data set of (tensor, label); None for no evaluation.
        num_classes: Labels are less than this; None if nobody says.
    """

    train: Source
    evaluation: Dataset[Any] | None = None
    num_classes: int | None = None


@dataclass(frozen=True)
class DataName:
    """The name of some data, and what cannot be seen from it.

    Attributes:
        train: One of

            - a folder with ``train/<class>/*.jpg`` and ``test`` or ``val`` beside it,
            - a folder with ``train/*.tar`` (and ``test`` or ``val``), or a path or ``http(s)`` address of tar shards
              with ranges in braces: ``https://.../train-{0000..0146}.tar``,
            - ``hf:owner/name[:config]`` or ``hf:`` and a local folder, for the library ``datasets``.
        evaluation: The same for evaluation; empty for the split beside ``train``, if there is one.
        streaming: Read a data set of the Hub as it comes, without downloading it first.
        num_classes: Where the data has no names for its classes: how many there are; 0 otherwise.
        num_images: Where a stream does not state its number of training images: how many there are; 0 otherwise.
        image_column: Column of a Hub data set's images; empty for the only one of that type.
        label_column: Column of its class indices; empty for the only one of that type.
    """

    train: str
    evaluation: str = ""
    streaming: bool = False
    num_classes: int = 0
    num_images: int = 0
    image_column: str = ""
    label_column: str = ""


def open_data(
    name: DataName | str | Path, recipe: Recipe, preprocessing: dict[str, Any], world: World | None = None
) -> Data:
    """Open training and evaluation images.

    Args:
        name: What to open.
        recipe: Its augmentation and ``holdout`` are used.
        preprocessing: timm's data config of the model.
        world: The job.

    Raises:
        DataError: A split is missing, empty, or has other classes than the other.
        ConfigError: The recipe holds images out of data without random access, or a package is missing.
    """
    name = name if isinstance(name, DataName) else DataName(str(name))
    _check(name, recipe)
    augment, judge = train_transform(preprocessing, recipe.augmentation), eval_transform(preprocessing)
    if _are_shards(name.train):
        return _open_shards(name, recipe, augment, judge, world or World())
    if name.train.startswith(_HUB):
        return _open_hub(name, recipe, augment, judge)
    images: Labelled = FolderImages(open_folder(name.train, TRAIN_SPLITS))
    classes = images.classes
    if recipe.holdout:
        images, held_out = hold_out(images, recipe.holdout)
        return _data(name, IndexedSource(images, augment), Transformed(held_out, judge))
    where = name.evaluation or name.train
    try:
        evaluation = open_folder(where, EVAL_SPLITS, judge, classes)
    except NoSplitFolderError as error:
        raise DataError(f"{error} Or keep a part of the training images out: --set holdout=0.1.") from None
    return _data(name, IndexedSource(images, augment), evaluation)


def _check(name: DataName, recipe: Recipe) -> None:
    if name.evaluation and recipe.holdout:
        raise ConfigError(
            f"There are two answers to what to evaluate on: holdout={recipe.holdout} of the training images, and "
            f"{name.evaluation}. Add --set holdout=0, or leave --eval-data out."
        )
    if name.streaming and not name.train.startswith(_HUB):
        raise ConfigError(f"--streaming is for hf: data, and {name.train} is none: leave it out.")
    if name.streaming and recipe.holdout:
        raise ConfigError(
            f"holdout={recipe.holdout} needs images that can be read in any order, and a stream cannot: add --set "
            "holdout=0, or leave --streaming out."
        )


def _data(name: DataName, source: Source, evaluation: Dataset[Any] | None) -> Data:
    """Put together, with the number of classes that the names or the user give."""
    known = len(source.classes) if source.classes else 0
    if known and name.num_classes not in (0, known):
        raise DataError(f"--num-classes says {name.num_classes}, but {name.train} has {known} classes: leave it out.")
    return Data(source, evaluation, known or name.num_classes or None)


def _are_shards(where: str) -> bool:
    if is_url(where) or where.endswith(".tar"):
        return True
    folder = Path(where)
    inside = next((folder / split for split in TRAIN_SPLITS if (folder / split).is_dir()), folder)
    return inside.is_dir() and any(inside.glob("*.tar")) and not any(path.is_dir() for path in inside.iterdir())


def _open_hub(name: DataName, recipe: Recipe, augment: Callable[[Any], Any], judge: Callable[[Any], Any]) -> Data:
    columns: dict[str, Any] = {"image_column": name.image_column or None, "label_column": name.label_column or None}
    where = _hub_name(name.train)
    if name.streaming:
        stream = open_hub_stream(where, "train", augment, num_images=name.num_images or None, **columns)
        return _data(name, stream, _hub_evaluation(name, judge, stream.classes, columns))
    images: Labelled = open_hub_dataset(where, "train", **columns)
    if recipe.holdout:
        images, held_out = hold_out(images, recipe.holdout)
        return _data(name, IndexedSource(images, augment), Transformed(held_out, judge))
    evaluation = _hub_evaluation(name, judge, images.classes, columns)
    return _data(name, IndexedSource(images, augment), evaluation)


def _open_shards(
    name: DataName, recipe: Recipe, augment: Callable[[Any], Any], judge: Callable[[Any], Any], world: World
) -> Data:
    folder = Path(name.train)
    beside = {path.name: path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    count = name.num_classes or None
    shards = open_shards(beside.get("train", name.train), num_classes=count)
    if recipe.holdout:
        shards, held_out = shards.split(recipe.holdout)
        evaluation: Any = ShardImages(held_out, judge, rank=world.rank, world_size=world.size)
        return _data(name, ShardSource(shards, augment), evaluation)
    other = name.evaluation or next((str(beside[split]) for split in EVAL_SPLITS if split in beside), "")
    evaluation = None
    if other:
        judged = open_shards(other, num_classes=shards.num_classes)
        _check_same(judged.classes, shards.classes, other)
        evaluation = ShardImages(judged, judge, rank=world.rank, world_size=world.size)
    return _data(name, ShardSource(shards, augment), evaluation)


def _hub_evaluation(
    name: DataName, judge: Callable[[Any], Any], classes: list[str] | None, columns: dict[str, Any]
) -> Dataset[Any] | None:
    where = _hub_name(name.evaluation or name.train)
    for split in (*EVAL_SPLITS, "valid"):
        try:
            found = open_hub_dataset(where, split, **columns)
        except NoSplitError as error:
            problem = error
            continue
        _check_same(found.classes, classes, where)
        return Transformed(found, judge)
    if name.evaluation:
        raise DataError(f"There is nothing to evaluate on: {problem}")
    return None


def _hub_name(where: str) -> str:
    """Without its prefix if it is a place on this machine, which is what the library ``datasets`` reads then."""
    local = where.removeprefix(_HUB)
    return local if Path(local).exists() else where


def _check_same(classes: list[str] | None, expected: list[str] | None, where: str) -> None:
    if classes is not None and expected is not None and classes != expected:
        raise DataError(f"The classes of {where} are not those of the training split, in its order.")
