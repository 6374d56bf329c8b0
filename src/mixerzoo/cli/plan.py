"""``mixerzoo train --dry-run``: what a run would take."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import torch
import typer

from mixerzoo.data.synthetic import synthetic_shards
from mixerzoo.errors import DataError
from mixerzoo.factory import data_config
from mixerzoo.train.data import Data, DataName, open_data
from mixerzoo.train.machine import device_name
from mixerzoo.train.options import RunOptions
from mixerzoo.train.plan import make_plan
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.run import make_model
from mixerzoo.train.throughput import Loading, Throughput, measure_loading, measure_training

SYNTHETIC = "synthetic"
_IMAGENET_1K, _IMAGENET_CLASSES = 1_281_167, 1000  # images of the training split (Russakovsky et al. 2015)
_WRITTEN = 128  # made-up images that reading is measured on


def show_plan(
    recipe: Recipe,
    data: DataName,
    options: RunOptions,
    *,
    micro_batch: int,
    throughput: Path | None,
    as_json: bool,
) -> None:
    """Print the plan of a run; nothing is trained. What is counted comes first, then speeds of this machine.

    What is being measured is said on the standard error stream.

    Args:
        recipe: What would be done.
        data: What it would read, or ``synthetic``: made-up JPEG files of ImageNet's sizes in shards, in place of the
            training split of ImageNet-1k. ``num_images`` replaces the size of either.
        options: How it would use the machine.
        micro_batch: Most images at once on a GPU.
        throughput: A GPU's recorded throughput is read from this file; one that is measured here is written to it.
        as_json: Print one JSON object, at the end.
    """
    blank = dataclasses.replace(recipe, pretrained=False)
    opened = None if data.train == SYNTHETIC else _open(data, blank)
    if opened is None:
        blank = dataclasses.replace(blank, holdout=0.0)
    whole = data.num_images or (_IMAGENET_1K if opened is None else 0)
    images = whole - round(recipe.holdout * whole) if opened is None or whole else opened.train.num_images
    classes = (data.num_classes or _IMAGENET_CLASSES) if opened is None else opened.num_classes or 0
    recorded = Throughput.read(throughput) if throughput is not None and throughput.exists() else None
    model = make_model(blank, classes)
    plan = make_plan(model, recipe, images, options, micro_batch=micro_batch, throughput=recorded)
    if not as_json:
        typer.echo(plan.counted() + "\n")
    _tell(f"measuring training steps on {device_name(torch.device(options.device))} ...")
    here = measure_training(model, recipe, options, micro_batch=micro_batch)
    plan = plan.with_speeds(here, _reading_speed(blank, opened, options, classes))
    if throughput is not None and recorded is None:
        if here.device_type == "cuda":
            here.write(throughput)
        else:
            _tell(f"note: {throughput} was not written: no GPU was measured here.")
    typer.echo(json.dumps(plan.as_dict(), indent=2) if as_json else plan.measured())


def _open(data: DataName, recipe: Recipe) -> Data:
    opened = open_data(data, recipe, data_config(recipe.model))
    if opened.num_classes is None:
        raise DataError(f"{data.train} does not say how many classes it has: give their number (--num-classes).")
    return opened


def _reading_speed(recipe: Recipe, opened: Data | None, options: RunOptions, classes: int) -> Loading:
    """Of what a run would read; of made-up images if that is nothing."""
    if opened is None:
        with tempfile.TemporaryDirectory() as folder:
            readers = max(options.workers, 1)  # each needs a shard
            images, a_shard = max(_WRITTEN, readers), max(1, min(32, _WRITTEN // readers))
            _tell(f"writing {images} made-up JPEG files ...")
            synthetic_shards(folder, images=images, classes=classes, images_per_shard=a_shard)
            made_up = _open(DataName(folder, num_classes=classes), recipe)
            return _reading_speed(recipe, made_up, options, classes)
    _tell("measuring how fast images are read and augmented ...")
    neighbours = bool(recipe.mixup or recipe.cutmix)
    return measure_loading(opened.train, workers=options.workers, neighbours=neighbours)


def _tell(text: str) -> None:
    typer.echo(text, err=True)
