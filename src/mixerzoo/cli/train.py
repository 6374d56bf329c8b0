"""``mixerzoo train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from mixerzoo.cli.device import usable_device
from mixerzoo.errors import ConfigError
from mixerzoo.inference.evaluate import Accuracy
from mixerzoo.train.loop import RunOptions
from mixerzoo.train.recipe import get_recipe
from mixerzoo.train.run import evaluate_folder, train


def train_command(
    data: Annotated[Path, typer.Option(help="Folder with train/<class>/*.jpg and test/<class>/*.jpg (or val).")],
    recipe: Annotated[str, typer.Option(help="A named recipe.")] = "cifar10_scratch",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override one field: --set lr=3e-4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints, metrics and weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished epoch in --out.")] = False,
    eval_only: Annotated[bool, typer.Option("--eval-only", help="Evaluate weights instead of training.")] = False,
    model: Annotated[
        str | None, typer.Option(help="What to evaluate, for instance local-dir:runs/1; else the recipe's variant.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run, for instance cpu or cuda.")] = "cpu",
    amp: Annotated[
        bool | None,
        typer.Option("--amp/--no-amp", help="bfloat16 autocast.  [default: amp to train, no-amp to evaluate]"),
    ] = None,
    compile: Annotated[bool, typer.Option(help="Train through torch.compile.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and augment images.")] = 2,
    half: Annotated[bool, typer.Option("--half", help="Write the final weights in float16.")] = False,
) -> None:
    """Train a model on a folder of images, or evaluate one with --eval-only."""
    chosen = get_recipe(recipe).override(set_ or [])
    if not eval_only and out is None:
        raise ConfigError("Training needs --out FOLDER for its checkpoints and weights.")
    if not eval_only and model is not None:
        raise ConfigError("--model is for --eval-only; the variant to train is the recipe's: --set model=NAME.")
    options = RunOptions(
        out or Path(),
        device=str(usable_device(device)),
        amp=not eval_only if amp is None else amp,
        compile=compile,
        workers=workers,
        resume=resume,
        weights_dtype=torch.float16 if half else torch.float32,
    )
    if eval_only:
        _report(evaluate_folder(model or chosen.model, data, options))
    else:
        _report(train(chosen, data, options))
        typer.echo(f"model: local-dir:{out}")


def _report(accuracy: Accuracy) -> None:
    typer.echo(f"top-1 {100 * accuracy.top1:.2f} %, top-5 {100 * accuracy.top5:.2f} % of {accuracy.num_images} images")
