"""``mixerzoo train --dry-run``: what a run would take."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import typer

from mixerzoo.data.synthetic import synthetic_shards
from mixerzoo.errors import DataError
from mixerzoo.factory import data_config
from mixerzoo.train.data import DataName, open_data
from mixerzoo.train.options import RunOptions
from mixerzoo.train.plan import make_plan
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.run import make_model
from mixerzoo.train.throughput import Throughput

SYNTHETIC = "synthetic"
_IMAGENET_1K, _IMAGENET_CLASSES = 1_281_167, 1000  # images of the training split (Russakovsky et al. 2015)


def show_plan(
    recipe: Recipe,
    data: DataName,
    options: RunOptions,
    *,
    micro_batch: int,
    throughput: Path | None,
    as_json: bool,
) -> None:
    """Print the plan of a run; nothing is trained. Speeds of this machine are measured.

    Args:
        recipe: What would be done.
        data: What it would read, or ``synthetic``: made-up JPEG files of ImageNet's sizes in shards, in place of the
            training split of ImageNet-1k. ``num_images`` replaces the size of either.
        options: How it would use the machine.
        micro_batch: Most images at once on a GPU.
        throughput: A GPU's recorded throughput is read from this file; one that is measured here is written to it.
        as_json: Print one JSON object.
    """
    blank = dataclasses.replace(recipe, pretrained=False, holdout=0.0)
    with ExitStack() as stack:
        if data.train == SYNTHETIC:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            classes = data.num_classes or _IMAGENET_CLASSES
            synthetic_shards(folder, classes=classes)
            data = DataName(folder, num_classes=classes, num_images=data.num_images or _IMAGENET_1K)
        opened = open_data(data, blank, data_config(recipe.model))
        if opened.num_classes is None:
            raise DataError(f"{data.train} does not say how many classes it has: give their number (--num-classes).")
        images = data.num_images or opened.train.num_images
        recorded = Throughput.read(throughput) if throughput is not None and throughput.exists() else None
        plan = make_plan(
            make_model(blank, opened.num_classes),
            recipe,
            images - round(recipe.holdout * images),
            options,
            micro_batch=micro_batch,
            throughput=recorded,
            source=opened.train,
        )
    if throughput is not None and recorded is None:
        if plan.here is None or plan.here.device_type != "cuda":
            typer.echo(f"note: {throughput} was not written: no GPU was measured here.", err=True)
        else:
            plan.here.write(throughput)
    typer.echo(json.dumps(plan.as_dict(), indent=2) if as_json else str(plan))
