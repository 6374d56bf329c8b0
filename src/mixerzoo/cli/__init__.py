"""The command line: thin commands over the package."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from mixerzoo import __version__
from mixerzoo.cli import bench, evaluate, models, predict, train, weights
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
    try:
        app()
    except MixerzooError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a missing permission
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
