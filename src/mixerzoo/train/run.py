"""A whole training run: from a recipe and the name of some data to a folder that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mixerzoo.data.source import seed_of
from mixerzoo.distributed import World, job
from mixerzoo.errors import DataError
from mixerzoo.factory import create_model, data_config
from mixerzoo.inference.evaluate import Accuracy
from mixerzoo.model import Mixer
from mixerzoo.publish import save_model
from mixerzoo.train.data import open_data
from mixerzoo.train.loop import Data, Loop
from mixerzoo.train.options import RunOptions
from mixerzoo.train.parallel import whole_copy
from mixerzoo.train.recipe import Recipe


def fit(
    model: Mixer, recipe: Recipe, data: Data | str | Path, options: RunOptions, *, world: World | None = None
) -> Accuracy | None:
    """Train ``model`` in place; in the end it holds the averaged weights if the recipe has an average.

    With ``options.shard`` its parameters stay shared out over the processes.

    Checkpoints and logs go into ``options.out_dir``. Of the recipe, what makes the model (its name, weights, image
    size, stochastic depth, head bias) is the caller's to apply; :func:`train` does that too. Under ``torchrun`` every
    process calls this alike. Seeds torch's global generator in every step.

    Args:
        model: What to train.
        recipe: What to do.
        data: Opened data, or the name of some, see :func:`mixerzoo.train.data.open_data`.
        options: How to use the machines.
        world: The job that this process has joined; None joins the one that ``torchrun`` started, if it did.

    Returns:
        The final accuracy on the evaluation images; None without any.

    Raises:
        TrainingError: The loss became NaN or infinite, or ``out_dir`` holds another run.
        DataError: There is less than one batch of images, or too many cannot be read.
        ConfigError: The recipe cannot be used with this model, job or packages.
        StorageError: A checkpoint could not be written.
    """
    if world is None:
        with job(options.device) as joined:
            return fit(model, recipe, data, options, world=joined)
    if not isinstance(data, Data):
        data = open_data(data, recipe, _preprocessing(recipe, data_config(model)))
    classes = data.train.classes
    if classes is not None and len(classes) != model.num_classes:
        raise DataError(f"The model has {model.num_classes} classes, the training split {len(classes)}.")
    loop = Loop(model, recipe, data, options, world)
    accuracy = loop.run()
    loop.keep_average()
    return accuracy


def train(recipe: Recipe, data: str | Path, options: RunOptions) -> Accuracy | None:
    """Make the recipe's model, train it and write it to ``options.out_dir``.

    The result is a folder that ``create_model("local-dir:...", pretrained=True)`` and ``mixerzoo predict`` take.

    Args:
        recipe: What to do.
        data: The name of some data, see :func:`mixerzoo.train.data.open_data`.
        options: How to use the machines.

    Returns:
        Accuracy after the last epoch; None if there is nothing to evaluate on.

    Raises:
        DataError: A split is missing, empty, or has other classes than the other; too many images cannot be read.
        TrainingError: The loss became NaN or infinite, or ``out_dir`` holds another run.
        ConfigError: The recipe cannot be used with this model, job or packages.
        StorageError: A checkpoint could not be written.
    """
    with job(options.device) as world:
        preprocessing = _preprocessing(recipe, data_config(recipe.model))
        opened = open_data(data, recipe, preprocessing)
        model = make_model(recipe, opened.train.classes)
        accuracy = fit(model, recipe, opened, options, world=world)
        whole = whole_copy(model)
        if whole is not None:
            save_model(
                whole,
                options.out_dir,
                label_names=opened.train.classes,
                preprocessing={key: value for key, value in preprocessing.items() if key != "input_size"},
                dtype=options.weights_dtype,
            )
        world.wait()
    return accuracy


def make_model(recipe: Recipe, classes: list[str] | None) -> Mixer:
    """The recipe's model with its weights, image size, head and stochastic depth; initialised from its seed.

    Raises:
        ConfigError: A size that cannot be used.
        ModelNameError: There is no such model.
        WeightsError: Its weights cannot be had.
    """
    torch.manual_seed(seed_of(recipe.seed))
    model = create_model(
        recipe.model,
        recipe.pretrained,
        num_classes=len(classes) if classes is not None else None,
        img_size=recipe.img_size or None,
        resize=None if recipe.resize == "auto" else recipe.resize,
        drop_path_rate=recipe.drop_path_rate,
        drop_path_rescale=recipe.drop_path_rescale,
        head_bias=recipe.head_bias,
    )
    assert isinstance(model, Mixer)
    return model


def _preprocessing(recipe: Recipe, known: dict[str, Any]) -> dict[str, Any]:
    if not recipe.img_size:
        return known
    channels = known["input_size"][0]
    return known | {"input_size": (channels, recipe.img_size, recipe.img_size)}
