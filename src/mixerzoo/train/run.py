"""A whole training run from a folder of images, and the evaluation of what it left."""

from __future__ import annotations

from pathlib import Path

import torch

from mixerzoo.data.folder import EVAL_SPLITS, TRAIN_SPLITS, open_folder
from mixerzoo.data.transforms import train_transform
from mixerzoo.errors import DataError
from mixerzoo.factory import create_model, create_transform, data_config
from mixerzoo.inference.evaluate import Accuracy, eval_batches, evaluate
from mixerzoo.model import Mixer
from mixerzoo.publish import save_model
from mixerzoo.train.loop import RunOptions, fit
from mixerzoo.train.recipe import Recipe


def train(recipe: Recipe, data: str | Path, options: RunOptions) -> Accuracy:
    """Train the recipe's model on a folder of images and write it to ``options.out_dir``.

    The result is a folder that ``create_model("local-dir:...", pretrained=True)`` and ``mixerzoo predict`` take.

    Args:
        recipe: What to do.
        data: Folder with ``train/<class>/*.jpg`` and ``test/<class>/*.jpg`` (or ``val``).
        options: Where to do it.

    Returns:
        Accuracy on the test split after the last epoch.

    Raises:
        DataError: A split is missing, empty, or has other classes than the other.
        TrainingError: The loss became NaN or infinite, or ``out_dir`` holds another run.
        ConfigError: The recipe cannot be used with this model or these packages.
    """
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.model, drop_path_rate=recipe.drop_path_rate)
    assert isinstance(model, Mixer)
    preprocessing = data_config(model)
    train_set = open_folder(data, TRAIN_SPLITS, train_transform(preprocessing, recipe.augmentation))
    eval_set = open_folder(data, EVAL_SPLITS, create_transform(model), train_set.classes)
    model.reset_classifier(len(train_set.classes))
    accuracy = fit(model, recipe, train_set, eval_set, options)
    assert accuracy is not None  # there is a test split
    save_model(
        model,
        options.out_dir,
        label_names=train_set.classes,
        preprocessing=preprocessing,
        dtype=options.weights_dtype,
    )
    return accuracy


def evaluate_folder(name: str, data: str | Path, options: RunOptions) -> Accuracy:
    """Accuracy of a model's weights on the test split of a folder of images.

    Args:
        name: Any name that :func:`mixerzoo.create_model` takes, for instance ``"local-dir:runs/1"``.
        data: Folder with ``test/<class>/*.jpg`` (or ``val``); its sorted classes are the model's outputs in order.
        options: ``device``, ``amp``, ``workers`` and ``progress`` are used.

    Raises:
        DataError: The split is missing or empty, or has other classes than the model.
        WeightsError: The weights cannot be had.
    """
    model = create_model(name, pretrained=True)
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    dataset = open_folder(data, EVAL_SPLITS, create_transform(model), list(names) if names else None)
    if model.num_classes != len(dataset.classes):
        raise DataError(f"{name} has {model.num_classes} classes, the test split in {data} {len(dataset.classes)}.")
    return evaluate(
        model.to(options.device),
        eval_batches(dataset, options.workers),
        device=options.device,
        amp=options.amp,
        progress=options.progress,
    )
