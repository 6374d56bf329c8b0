"""``mixerzoo predict``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from torch import nn
from tqdm import tqdm

from mixerzoo import engine, factory
from mixerzoo.cli.device import usable_device
from mixerzoo.data.images import find_images
from mixerzoo.errors import HubUnreachableError
from mixerzoo.inference.predict import Prediction, predict
from mixerzoo.label_names import labels

DEFAULT_MODEL = "mixer_b16.goog_in1k"
BUILT_IN_MODEL = "mixer_ti4_32.cifar10"


def predict_command(
    paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help=f"A name that create_model knows.  [default: {DEFAULT_MODEL}]")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 5,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model together.")] = 16,
    device: Annotated[str, typer.Option(help="Where to run, for instance cpu or cuda.")] = "cpu",
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Run the fastest form for this machine, in bfloat16; says which it is.")
    ] = False,
    quantize: Annotated[
        Literal["int8", "fp8"] | None, typer.Option(help="Quantise matrix products as well; implies --optimize.")
    ] = None,
) -> None:
    """Classify image files.

    Exit status 1 if any image could not be read; the others are predicted all the same.
    """
    images, target = find_images(paths), usable_device(device)
    classifier = _load(model).to(target)
    if optimize or quantize:
        fast = engine.optimize(classifier, quantize=quantize, max_batch_size=batch_size)
        typer.echo(str(fast.report()).splitlines()[0], err=True)
        classifier = fast
    failed = 0
    predictions = predict(classifier, images, top_k=top_k, batch_size=batch_size)
    for prediction in tqdm(predictions, total=len(images), unit="image", disable=None if len(images) > 1 else True):
        failed += prediction.error is not None
        _show(prediction, json_output)
    if failed:
        if len(images) > 1:
            typer.echo(f"{failed} of {len(images)} images could not be read.", err=True)
        raise typer.Exit(1)


def _load(name: str | None) -> nn.Module:
    if name is not None:
        return factory.create_model(name, pretrained=True)
    try:
        return factory.create_model(DEFAULT_MODEL, pretrained=True)
    except HubUnreachableError as error:
        classes = ", ".join(labels(BUILT_IN_MODEL))
        typer.echo(
            f"note: using the small built-in model {BUILT_IN_MODEL}, which knows only 10 classes ({classes}), because "
            f"the default model {DEFAULT_MODEL} cannot be had: {error}",
            err=True,
        )
        return factory.create_model(BUILT_IN_MODEL, pretrained=True)


def _show(prediction: Prediction, json_output: bool) -> None:
    with tqdm.external_write_mode():
        if json_output:
            typer.echo(json.dumps(dataclasses.asdict(prediction), ensure_ascii=False))
        elif prediction.error is not None:
            typer.echo(f"error: {prediction.error}", err=True)
        else:
            typer.echo(prediction.source)
            for label, probability in zip(prediction.labels, prediction.probabilities, strict=True):
                typer.echo(f"  {100 * probability:5.1f} %  {label}")
