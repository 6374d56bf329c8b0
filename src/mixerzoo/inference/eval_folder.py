"""Opening a folder of labelled images as a model's own preprocessing wants it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn
from torchvision.datasets import ImageFolder

from mixerzoo.data.folder import EVAL_SPLITS, TRAIN_SPLITS, open_folder
from mixerzoo.data.images import load_image
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.factory import create_transform


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
    channels = int(getattr(model, "in_chans", 3))
    if channels not in (1, 3):
        raise ConfigError(
            f"The model takes {channels} channels; image files give 1 or 3. Evaluate it from Python on a dataset of "
            "tensors (mixerzoo.inference.evaluate), or with --multi-label on .npy files."
        )
    folder = eval_folder(root, split)
    dataset = open_folder(folder.parent, (folder.name,), create_transform(model))
    if channels == 1:
        dataset.loader = partial(load_image, mode="L")
    return dataset


def eval_folder(root: str | Path, split: str | None = None) -> Path:
    """The folder with the class folders; see :func:`open_eval_folder`.

    Raises:
        DataError: There is no such folder.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    names = EVAL_SPLITS if split is None else (split,)
    found = next((root / name for name in names if (root / name).is_dir()), None)
    if found is not None:
        return found
    inside = [path for path in root.iterdir() if path.is_dir()]
    if split is None and inside and not any((root / name).is_dir() for name in TRAIN_SPLITS):
        return root
    raise DataError(
        f"{root} has no folder named {' or '.join(names)}: expected images at {root}/{names[0]}/<class>/*.jpg"
        + (f", or class folders in {root} itself." if split is None else ".")
    )
