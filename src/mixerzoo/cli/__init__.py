"""The command line: thin commands over the package."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer
from torch.distributed.elastic.multiprocessing.errors import record

from mixerzoo import __version__
from mixerzoo.cli import bench, evaluate, models, predict, train, weights
from mixerzoo.distributed import in_a_job, is_first_process, is_of_another_process
from mixerzoo.errors import MixerzooError

app = typer.Typer(
    name="mixerzoo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mixerzoo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """MLP-Mixer in PyTorch: list, inspect, predict, evaluate, train, measure, convert, verify, publish."""


app.command("list")(models.list_command)
app.command("info")(models.info_command)
app.command("predict")(predict.predict_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("train")(train.train_command)
app.command("bench")(bench.bench_command)
app.command("convert")(weights.convert_command)
app.command("verify")(weights.verify_command)
app.command("push")(weights.push_command)


def main() -> None:
    """Run the command line; an error of ours is one line on standard error and exit status 1."""
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata in image files is not the user's business
    warnings.showwarning = lambda message, *_: typer.echo(f"note: {message}", err=True)
    run = record(app) if in_a_job() else app  # record: torchrun's report names the cause
    try:
        run()
    except (MixerzooError, OSError) as error:  # OSError: a full disk, a missing permission
        typer.echo(f"error: {_who()}{error}", err=True)
        sys.exit(1)
    except RuntimeError as error:
        if not is_of_another_process(error):
            raise
        typer.echo(f"error: {_who()}another process of the job failed; its own message says why.", err=True)
        sys.exit(1)


def _who() -> str:
    """Which process speaks, for all but the first."""
    return "" if is_first_process() else f"process {os.environ['RANK']}: "
