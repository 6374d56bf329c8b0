"""``mixerzoo train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from mixerzoo.cli.device import usable_device
from mixerzoo.cli.plan import show_plan
from mixerzoo.distributed import is_first_process
from mixerzoo.errors import ConfigError
from mixerzoo.train.checkpoint import newest
from mixerzoo.train.data import DataName
from mixerzoo.train.options import RunOptions
from mixerzoo.train.recipe import get_recipe
from mixerzoo.train.run import train

_INTERRUPTED = 130  # what shells report for Ctrl-C


def train_command(
    data: Annotated[
        str,
        typer.Option(
            help="Folder with train/<class>/*.jpg and test (or val) beside it; tar shards, such as "
            "https://.../train-{0000..0146}.tar; hf:owner/name of the Hugging Face Hub."
        ),
    ],
    recipe: Annotated[str, typer.Option(help="A named recipe.")] = "cifar10_scratch",
    model: Annotated[str | None, typer.Option(help="Short for --set model=NAME.")] = None,
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
    eval_data: Annotated[str, typer.Option(help="Where to evaluate, if not on the split beside the first.")] = "",
    image_column: Annotated[str, typer.Option(help="Of hf: data with several columns of images.")] = "",
    label_column: Annotated[str, typer.Option(help="Of hf: data whose class indices are plain numbers.")] = "",
    streaming: Annotated[bool, typer.Option("--streaming", help="Read hf: data as it comes.")] = False,
    num_classes: Annotated[int, typer.Option(min=0, help="Of data that has no names for its classes.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the run would take; --data synthetic needs no data.")
    ] = False,
    num_images: Annotated[
        int, typer.Option(min=0, help="Training images of a stream that does not say; for --dry-run, of any data.")
    ] = 0,
    micro_batch: Annotated[int, typer.Option(min=1, help="For --dry-run: most images at once on a GPU.")] = 256,
    throughput: Annotated[
        Path | None, typer.Option(help="For --dry-run: file with a GPU's measured speed; written where a GPU is.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="For --dry-run: one JSON object.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Write the final weights in float16.")] = False,
) -> None:
    """Train a model by a recipe. Start it with torchrun to use several processes, GPUs or machines."""
    chosen = get_recipe(recipe).override([*(set_ or []), *([f"model={model}"] if model else [])])
    if out is None and not dry_run:
        raise ConfigError("Training needs --out FOLDER for its checkpoints and weights.")
    if not dry_run and (throughput is not None or json_output):
        raise ConfigError("--throughput and --json are for --dry-run: add it, or leave them out.")
    name = DataName(data, eval_data, streaming, num_classes, num_images, image_column, label_column)
    options = RunOptions(
        out or Path(),
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
    if dry_run:
        show_plan(
            chosen,
            name,
            options,
            micro_batch=micro_batch,
            throughput=throughput,
            as_json=json_output,
        )
        return
    try:
        accuracy = train(chosen, name, options, recipe_name=recipe)
    except KeyboardInterrupt:
        last = newest(options.out_dir)
        where = f"from step {last.run['step']}" if last else "from the beginning: no checkpoint was written yet"
        if is_first_process():
            typer.echo(f"stopped; the same command with --resume goes on {where}.", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    if is_first_process():
        if accuracy is not None:
            typer.echo(accuracy.in_words())
        typer.echo(f"model: local-dir:{out}")
