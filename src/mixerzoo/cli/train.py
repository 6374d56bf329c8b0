"""``mixerzoo train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from mixerzoo.cli.device import usable_device
from mixerzoo.distributed import is_first_process
from mixerzoo.errors import ConfigError
from mixerzoo.train.options import RunOptions
from mixerzoo.train.recipe import get_recipe
from mixerzoo.train.run import train


def train_command(
    data: Annotated[str, typer.Option(help="Folder with train/<class>/*.jpg and test/<class>/*.jpg (or val).")],
    recipe: Annotated[str, typer.Option(help="A named recipe.")] = "cifar10_scratch",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override one field: --set lr=3e-4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints, logs and weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    device: Annotated[str, typer.Option(help="Where to run, for instance cpu or cuda.")] = "cpu",
    amp: Annotated[bool, typer.Option("--amp/--no-amp", help="bfloat16 autocast.")] = True,
    compile: Annotated[bool, typer.Option(help="Train through torch.compile.")] = False,
    backend: Annotated[str | None, typer.Option(help="How layers are computed, for instance triton.")] = None,
    shard: Annotated[bool, typer.Option("--shard", help="Share the model out over the processes (FSDP2).")] = False,
    accumulate: Annotated[int, typer.Option(min=1, help="Micro-batches a step on each process.")] = 1,
    grad_checkpointing: Annotated[
        bool, typer.Option("--grad-checkpointing", help="Compute activations again in the backward pass.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images for each process.")] = 2,
    checkpoint_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints; 0: an epoch.")] = 0,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints that are kept.")] = 2,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Epochs between evaluations.")] = 1,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's event files.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Write the final weights in float16.")] = False,
) -> None:
    """Train a model by a recipe. Start it with torchrun to use several processes, GPUs or machines."""
    chosen = get_recipe(recipe).override(set_ or [])
    if out is None:
        raise ConfigError("Training needs --out FOLDER for its checkpoints and weights.")
    options = RunOptions(
        out,
        device=str(usable_device(device)),
        amp=amp,
        compile=compile,
        backend=backend,
        shard=shard,
        accumulate=accumulate,
        grad_checkpointing=grad_checkpointing,
        workers=workers,
        checkpoint_every=checkpoint_every,
        keep=keep,
        evaluate_every=evaluate_every,
        resume=resume,
        tensorboard=tensorboard,
        weights_dtype=torch.float16 if half else torch.float32,
    )
    accuracy = train(chosen, data, options)
    if is_first_process():
        if accuracy is not None:
            typer.echo(
                f"top-1 {100 * accuracy.top1:.2f} %, top-5 {100 * accuracy.top5:.2f} % of {accuracy.num_images} images"
            )
        typer.echo(f"model: local-dir:{out}")
