"""Opening labelled images as a model's own preprocessing wants them: folders, tar shards, data sets of the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose

from mixerzoo.data.folder import EVAL_SPLITS, TRAIN_SPLITS, open_folder
from mixerzoo.data.hub_datasets import NoSplitError, open_hub_dataset
from mixerzoo.data.images import load_image
from mixerzoo.data.indexed import Transformed
from mixerzoo.data.naming import hub_name, shard_place
from mixerzoo.data.shards import ShardImages, open_shards
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.factory import create_transform


@dataclass(frozen=True)
class EvalData:
    """Labelled images.

    Attributes:
        images: Pairs of an image, preprocessed for the model, and a label.
        classes: Names of the classes in label order; None where labels are numbers of outputs.
    """

    images: Dataset[Any]
    classes: list[str] | None


def eval_splits(split: str | None) -> tuple[str, ...]:
    """The folders to look for: the one that was asked for, or those that evaluation data usually has."""
    return EVAL_SPLITS if split is None else (split,)


def open_eval_folder(model: nn.Module, root: str | Path, split: str | None = None) -> ImageFolder:
    """Open a split of a folder, preprocessed for evaluation; pairs of an image tensor and a class index.

    Args:
        model: Whose preprocessing to use.
        root: Folder with ``<split>/<class>/*.jpg``. Without ``split`` it may also hold the class folders themselves,
            as ImageNet-V2, -R, -A and -Sketch are distributed.
        split: Name of the split; None for the first of ``test``, ``val`` and ``validation`` that there is.

    Raises:
        DataError: The folder or the split is missing, or has no images.
        ConfigError: The model takes another number of channels than 1 or 3.
    """
    channels = _channels(model)
    folder = eval_folder(root, split)
    dataset = open_folder(folder.parent, (folder.name,), create_transform(model))
    if channels == 1:
        dataset.loader = partial(load_image, mode="L")
    return dataset


def open_eval_shards(model: nn.Module, where: str, split: str | None = None, world: World | None = None) -> EvalData:
    """Open tar shards for evaluation, of which every process gives its own.

    Args:
        model: Whose preprocessing to use.
        where: A folder with ``<split>/*.tar`` or with the shards themselves, or a path or ``http(s)`` address of
            shards with ranges in braces.
        split: Name of the split in a folder.
        world: The job.

    Raises:
        DataError: There are no such shards.
        ConfigError: The model takes another number of channels than 1 or 3, webdataset is not installed, or a split
            of what is no folder is asked for.
    """
    place = shard_place(where, eval_splits(split))
    if place is None:
        raise DataError(f"{where} has no tar shards.")
    if split is not None and Path(place).name != split:
        raise ConfigError(f"{where} names the shards themselves, which have no split {split!r}: leave --split out.")
    world = world or World()
    shards = open_shards(place)
    return EvalData(ShardImages(shards, _transform(model), rank=world.rank, world_size=world.size), shards.classes)


def open_eval_hub(
    model: nn.Module,
    where: str,
    split: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> EvalData:
    """Open a data set of the Hugging Face Hub, or a local one in its form, for evaluation.

    Args:
        model: Whose preprocessing to use.
        where: ``hf:owner/name``, ``hf:owner/name:config``, or ``hf:`` and a local folder or Parquet file.
        split: Name of the split; None for the first of ``test``, ``val``, ``validation`` and ``valid`` that there is.
        image_column: Column of the images; None for the only one of that type.
        label_column: Column of the class indices; None for the only one of type ``ClassLabel``.

    Raises:
        DataError: There is no such data set, split or column, or the Hub cannot be reached.
        ConfigError: The model takes another number of channels than 1 or 3, or ``datasets`` is not installed.
    """
    transform, problem = _transform(model), None
    for name in eval_splits(split) if split is not None else (*EVAL_SPLITS, "valid"):
        try:
            images = open_hub_dataset(hub_name(where), name, image_column=image_column, label_column=label_column)
        except NoSplitError as error:
            problem = error
            continue
        return EvalData(Transformed(images, transform), images.classes)
    raise DataError(f"{problem} Name one of these with --split.")


def eval_folder(root: str | Path, split: str | None = None) -> Path:
    """The folder with the class folders; see :func:`open_eval_folder`.

    Raises:
        DataError: There is no such folder.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    names = eval_splits(split)
    found = next((root / name for name in names if (root / name).is_dir()), None)
    if found is not None:
        return found
    inside = {path.name for path in root.iterdir() if path.is_dir()}
    if split is None and inside and not inside & set(TRAIN_SPLITS):
        return root
    if split is None:
        expected = f"images at {root}/{names[0]}/<class>/*.jpg, or class folders in {root} itself"
        others = " (--split train evaluates on the training images)" if "train" in inside else ""
        raise DataError(f"{root} has no folder named {' or '.join(names)}: expected {expected}{others}.")
    raise DataError(f"{root} has no folder named {split}: expected images at {root}/{split}/<class>/*.jpg.")


def _channels(model: nn.Module) -> int:
    channels = int(getattr(model, "in_chans", 3))
    if channels not in (1, 3):
        raise ConfigError(
            f"The model takes {channels} channels; image files give 1 or 3. Evaluate it from Python on a dataset of "
            "tensors (mixerzoo.inference.evaluate), or with --multi-label on .npy files."
        )
    return channels


def _transform(model: nn.Module) -> Any:
    """The preprocessing of an RGB image for a model of 3 channels, or of 1."""
    transform = create_transform(model)
    return partial(_grey, transform) if _channels(model) == 1 else transform


def _grey(transform: Compose, image: Image.Image) -> Tensor:
    tensor: Tensor = transform(image.convert("L"))
    return tensor
