"""``mixerzoo train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from mixerzoo import factory
from mixerzoo.cli.device import usable_device
from mixerzoo.data.folder import EVAL_SPLITS, TRAIN_SPLITS, open_folder
from mixerzoo.data.transforms import train_transform
from mixerzoo.errors import ConfigError
from mixerzoo.inference.evaluate import Accuracy, evaluate
from mixerzoo.train.loop import RunOptions, fit
from mixerzoo.train.recipe import Recipe, get_recipe


def train_command(
    data: Annotated[Path, typer.Option(help="Folder with train/<class>/*.jpg and test/<class>/*.jpg (or val).")],
    recipe: Annotated[str, typer.Option(help="A named recipe.")] = "cifar10_scratch",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override one field: --set lr=3e-4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints, metrics and weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished epoch in --out.")] = False,
    eval_only: Annotated[bool, typer.Option("--eval-only", help="Evaluate weights instead of training.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Safetensors file to evaluate; without it, the variant's default weights.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run, for instance cpu or cuda.")] = "cpu",
    amp: Annotated[bool, typer.Option(help="bfloat16 autocast.")] = True,
    compile: Annotated[bool, typer.Option(help="Train through torch.compile.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and augment images.")] = 2,
    half: Annotated[bool, typer.Option("--half", help="Write the final weights in float16.")] = False,
) -> None:
    """Train a model on a folder of images, or evaluate one with --eval-only."""
    chosen = get_recipe(recipe).override(set_ or [])
    usable_device(device)
    if eval_only:
        _report(_evaluate(chosen, data, checkpoint, device, amp, workers))
        return
    if out is None:
        raise ConfigError("Training needs --out FOLDER for its checkpoints and weights.")
    if checkpoint is not None:
        raise ConfigError("--checkpoint is for --eval-only; to go on with a run use --resume.")
    torch.manual_seed(chosen.seed)
    classes = _open(data, TRAIN_SPLITS, None).classes
    model = factory.create_model(chosen.model, num_classes=len(classes), drop_path_rate=chosen.drop_path_rate)
    data_config = factory.data_config(model)
    options = RunOptions(
        out,
        device=device,
        amp=amp,
        compile=compile,
        workers=workers,
        resume=resume,
        weights_dtype=torch.float16 if half else torch.float32,
    )
    accuracy = fit(
        model,
        chosen,
        open_folder(data, TRAIN_SPLITS, train_transform(data_config, chosen.augmentation)),
        open_folder(data, EVAL_SPLITS, factory.create_transform(model), classes),
        options,
    )
    if accuracy is not None:
        _report(accuracy)
    typer.echo(f"weights: {out / 'model.safetensors'}")


def _open(data: Path, splits: tuple[str, ...], classes: list[str] | None) -> ImageFolder:
    return open_folder(data, splits, lambda image: image, classes)


def _evaluate(recipe: Recipe, data: Path, checkpoint: Path | None, device: str, amp: bool, workers: int) -> Accuracy:
    classes = _open(data, EVAL_SPLITS, None).classes
    model: nn.Module = factory.create_model(
        recipe.model,
        pretrained=checkpoint is None,
        num_classes=len(classes) if checkpoint is not None else None,
        checkpoint_path=checkpoint,
    )
    if model.num_classes != len(classes):
        raise ConfigError(f"The model has {model.num_classes} classes, the data in {data} has {len(classes)}.")
    dataset = open_folder(data, EVAL_SPLITS, factory.create_transform(model))
    loader = DataLoader(dataset, batch_size=512, num_workers=workers)
    return evaluate(model.to(device), loader, device=device, amp=amp, progress=True)


def _report(accuracy: Accuracy) -> None:
    typer.echo(
        f"top-1 {100 * accuracy.top1:.2f} %, top-5 {100 * accuracy.top5:.2f} % of {accuracy.num_images} test images"
    )
