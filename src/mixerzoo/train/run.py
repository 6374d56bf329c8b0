"""A whole training run: from a recipe and the name of some data to a folder that loads."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch

from mixerzoo.data.source import seed_of
from mixerzoo.distributed import World, job
from mixerzoo.errors import DataError, LabelsUnknownError
from mixerzoo.factory import create_model, data_config
from mixerzoo.inference.evaluate import Accuracy
from mixerzoo.label_names import labels
from mixerzoo.model import Mixer
from mixerzoo.publish import save_model
from mixerzoo.train.card import CARD_FILE, evaluated_images, model_card_entries, write_card
from mixerzoo.train.checkpoint import newest
from mixerzoo.train.curves import draw_curves
from mixerzoo.train.data import Data, DataName, open_data
from mixerzoo.train.loop import Loop
from mixerzoo.train.machine import device_name
from mixerzoo.train.options import RunOptions
from mixerzoo.train.out_dir import only_one
from mixerzoo.train.parallel import whole_copy
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.watch import LOG_FILE, read_log


def fit(
    model: Mixer, recipe: Recipe, data: Data | DataName | str | Path, options: RunOptions, *, world: World | None = None
) -> Accuracy | None:
    """Train ``model`` in place; in the end it holds the averaged weights if the recipe has an average.

    With ``options.shard`` its parameters stay shared out over the processes.

    Checkpoints and logs go into ``options.out_dir``. Of the recipe, what makes the model (its name, weights, image
    size, stochastic depth, head bias) is the caller's to apply; :func:`train` does that too. Under ``torchrun`` every
    process calls this alike, and the first one's parameters are taken. Seeds torch's global generator in every step;
    what the options say (gradient checkpointing, backend, compilation, frozen parameters) stays with the model.

    Args:
        model: What to train.
        recipe: What to do.
        data: Opened data, or the name of some, see :class:`mixerzoo.train.data.DataName`.
        options: How to use the machines.
        world: The job that this process has joined; None joins the one that ``torchrun`` started, if it did.

    Returns:
        The final accuracy on the evaluation images; None without any.

    Raises:
        TrainingError: The loss became NaN or infinite, or ``out_dir`` holds another run or is used by another job.
        DataError: There is less than one batch of images, or too many cannot be read.
        ConfigError: The recipe cannot be used with this model, job or packages.
        StorageError: A checkpoint could not be written.
    """
    if world is None:
        with job(options.device) as joined:
            return fit(model, recipe, data, options, world=joined)
    with only_one(options, world):
        return _fit(model, recipe, data, options, world)


def _fit(
    model: Mixer, recipe: Recipe, data: Data | DataName | str | Path, options: RunOptions, world: World
) -> Accuracy | None:
    if not isinstance(data, Data):
        data = open_data(data, recipe, data_config(model), world)
    if data.num_classes not in (None, model.num_classes):
        raise DataError(
            f"The model has {model.num_classes} classes, the training split {data.num_classes}: "
            "model.reset_classifier changes the model's."
        )
    loop = Loop(model, recipe, data, options, world)
    accuracy = loop.run()
    loop.keep_average()
    return accuracy


def train(
    recipe: Recipe, data: DataName | str | Path, options: RunOptions, *, recipe_name: str = ""
) -> Accuracy | None:
    """Make the recipe's model, train it and write it to ``options.out_dir``.

    The result is a folder that ``create_model("local-dir:...", pretrained=True)`` and ``mixerzoo predict`` take, with
    the curves (``curves.png``, if matplotlib is installed) and a card of the run (``training.md``) beside the weights.

    Args:
        recipe: What to do.
        data: The name of some data, see :class:`mixerzoo.train.data.DataName`.
        options: How to use the machines.
        recipe_name: What the recipe is called in the card.

    Returns:
        Accuracy after the last epoch; None if there is nothing to evaluate on.

    Raises:
        DataError: A split is missing, empty, or has other classes than the other; too many images cannot be read.
        TrainingError: The loss became NaN or infinite, or ``out_dir`` holds another run.
        ConfigError: The recipe cannot be used with this model, job or packages.
        StorageError: A checkpoint could not be written.
    """
    data = data if isinstance(data, DataName) else DataName(str(data))
    with job(options.device) as world, only_one(options, world):
        preprocessing = _preprocessing(recipe, data_config(recipe.model))
        opened = open_data(data, recipe, preprocessing, world)
        if opened.num_classes is None:
            raise DataError(f"{data.train} does not say how many classes it has: give their number (--num-classes).")
        model = make_model(recipe, opened.num_classes, opened.train.classes)
        accuracy = _fit(model, recipe, opened, options, world)
        whole = whole_copy(model)
        metrics = {"top1": accuracy.top1, "top5": accuracy.top5} if accuracy is not None else {}
        evaluated_on = evaluated_images(accuracy.num_images, recipe, data, opened) if accuracy is not None else ""
        if whole is not None:
            save_model(
                whole,
                options.out_dir,
                label_names=opened.train.classes,
                preprocessing={key: value for key, value in preprocessing.items() if key != "input_size"},
                dtype=options.weights_dtype,
                **model_card_entries(recipe, recipe_name, data, opened.train.num_images, metrics, evaluated_on),
            )
            _describe(recipe, recipe_name, data, opened, options, world, metrics, evaluated_on)
        world.wait()
    return accuracy


def _describe(
    recipe: Recipe,
    recipe_name: str,
    data: DataName,
    opened: Data,
    options: RunOptions,
    world: World,
    metrics: dict[str, float],
    evaluated_on: str,
) -> None:
    """Draw the curves and write the card."""
    out_dir, log = options.out_dir, options.out_dir / LOG_FILE
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn("No curves.png was drawn: pip install 'mixerzoo[train]' brings matplotlib.", stacklevel=2)
    else:
        draw_curves(log, out_dir / "curves.png", title=recipe_name)
    last = newest(out_dir)
    write_card(
        out_dir / CARD_FILE,
        recipe=recipe,
        recipe_name=recipe_name,
        data={
            "name": data.train,
            "num_images": opened.train.num_images,
            "classes": opened.train.classes or opened.num_classes,
            "unusable": len(last.run["faults"]) if last else 0,
        },
        metrics=metrics,
        evaluated_on=evaluated_on,
        run={
            "device": device_name(world.device),
            "world_size": world.size,
            "sharded": options.shard,
            "amp": options.amp,
            "compiled": options.compile,
            "images_seen": recipe.total_steps(opened.train.num_images) * recipe.batch_size,
            "seconds": sum(line.get("seconds") or 0.0 for line in read_log(log)),
        },
    )


def make_model(recipe: Recipe, num_classes: int, classes: list[str] | None = None) -> Mixer:
    """The recipe's model with its weights, image size, head and stochastic depth; initialised from its seed.

    A head that came with the weights stays only if its classes are known to be ``classes``.

    Raises:
        ConfigError: A size that cannot be used.
        ModelNameError: There is no such model.
        WeightsError: Its weights cannot be had.
    """
    torch.manual_seed(seed_of(recipe.seed))
    model = create_model(
        recipe.model,
        recipe.pretrained,
        num_classes=num_classes,
        img_size=recipe.img_size or None,
        resize=None if recipe.resize == "auto" else recipe.resize,
        drop_path_rate=recipe.drop_path_rate,
        drop_path_rescale=recipe.drop_path_rescale,
        head_bias=recipe.head_bias,
    )
    assert isinstance(model, Mixer)
    if recipe.pretrained and (classes is None or classes != _class_names(model)):
        model.reset_classifier(num_classes)
    return model


def _class_names(model: Mixer) -> list[str] | None:
    try:
        return labels(model)
    except LabelsUnknownError:
        return None


def _preprocessing(recipe: Recipe, known: dict[str, Any]) -> dict[str, Any]:
    if not recipe.img_size:
        return known
    channels = known["input_size"][0]
    return known | {"input_size": (channels, recipe.img_size, recipe.img_size)}
