"""Opening what a run learns from, by its name: image folders, tar shards, data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mixerzoo.data.folder import EVAL_SPLITS, TRAIN_SPLITS, NoSplitFolderError, open_folder
from mixerzoo.data.hub_datasets import NoSplitError, open_hub_dataset, open_hub_stream
from mixerzoo.data.indexed import FolderImages, IndexedSource, Labelled, Transformed, hold_out
from mixerzoo.data.naming import hub_name, kind_of, shard_place
from mixerzoo.data.shards import ShardImages, ShardSource, open_shards
from mixerzoo.data.source import Source
from mixerzoo.data.transforms import eval_transform, train_transform
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.train.recipe import Recipe


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
            - ``hf:owner/name[:config]``, or ``hf:`` and a local folder or Parquet file, for the library ``datasets``.
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
    world = world or World()
    evaluation: Dataset[Any] | None = None
    source: Source
    if (place := shard_place(name.train, TRAIN_SPLITS)) is not None:
        shards = open_shards(place, num_classes=name.num_classes or None)
        if recipe.holdout:
            shards, held_out_shards = shards.split(recipe.holdout)
            evaluation = ShardImages(held_out_shards, judge, rank=world.rank, world_size=world.size)
        source = ShardSource(shards, augment)
    elif name.streaming:
        source = open_hub_stream(
            hub_name(name.train), "train", augment, num_images=name.num_images or None, **_columns(name)
        )
    else:
        images = _images(name)
        if recipe.holdout:
            images, held_out = hold_out(images, recipe.holdout)
            evaluation = Transformed(held_out, judge)
        source = IndexedSource(images, augment)
    return _data(name, source, evaluation or _open_evaluation(name, source.classes, judge, world))


def _images(name: DataName) -> Labelled:
    if kind_of(name.train) == "hub":
        return open_hub_dataset(hub_name(name.train), "train", **_columns(name))
    return FolderImages(open_folder(name.train, TRAIN_SPLITS))


def _columns(name: DataName) -> dict[str, Any]:
    return {"image_column": name.image_column or None, "label_column": name.label_column or None}


def _check(name: DataName, recipe: Recipe) -> None:
    if name.evaluation and recipe.holdout:
        raise ConfigError(
            f"There are two answers to what to evaluate on: holdout={recipe.holdout} of the training images, and "
            f"{name.evaluation}. Add --set holdout=0, or leave --eval-data out."
        )
    if name.streaming and kind_of(name.train) != "hub":
        raise ConfigError(f"--streaming is for hf: data, and {name.train} is none: leave it out.")
    for option in ("image_column", "label_column"):
        if getattr(name, option) and kind_of(name.train) != "hub":
            raise ConfigError(f"--{option.replace('_', '-')} is for hf: data, and {name.train} is none: leave it out.")
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


def _open_evaluation(
    name: DataName, classes: list[str] | None, judge: Callable[[Any], Any], world: World
) -> Dataset[Any] | None:
    """What the user named, or the split beside the training split; of streams and Hub data there need be none."""
    where = name.evaluation or name.train
    kind = kind_of(where, EVAL_SPLITS)
    if kind == "hub":
        return _hub_evaluation(name, where, classes, judge)
    beside_shards = not name.evaluation and kind_of(name.train, TRAIN_SPLITS) == "shards"
    if kind == "shards":
        place = shard_place(where, EVAL_SPLITS)
        assert place is not None
        if beside_shards and place == shard_place(where, TRAIN_SPLITS):
            return None
        shards = open_shards(place, num_classes=len(classes) if classes else name.num_classes or None)
        _check_same(shards.classes, classes, where)
        return ShardImages(shards, judge, rank=world.rank, world_size=world.size)
    try:
        return open_folder(where, EVAL_SPLITS, judge, classes)
    except NoSplitFolderError as error:
        if beside_shards:
            return None
        if name.evaluation:
            raise
        raise DataError(f"{error} Or keep a part of the training images out: --set holdout=0.1.") from None


def _hub_evaluation(
    name: DataName, where: str, classes: list[str] | None, judge: Callable[[Any], Any]
) -> Dataset[Any] | None:
    if hub_name(where).endswith(".parquet") and not name.evaluation:
        return None  # one file is one split, whatever it is asked for
    for split in (*EVAL_SPLITS, "valid"):
        with suppress(NoSplitError):
            found = open_hub_dataset(hub_name(where), split, **_columns(name))
            _check_same(found.classes, classes, where)
            return Transformed(found, judge)
    if name.evaluation:
        raise DataError(f"{where} has none of the splits {', '.join(EVAL_SPLITS)} to evaluate on.")
    return None


def _check_same(classes: list[str] | None, expected: list[str] | None, where: str) -> None:
    if classes is not None and expected is not None and classes != expected:
        raise DataError(f"The classes of {where} are not those of the training split, in its order.")
