"""The command line: thin commands over the package."""

from __future__ import annotations

import sys
import warnings

import typer

from mixerzoo.cli import bench, models, predict, train
from mixerzoo.errors import MixerzooError

app = typer.Typer(
    name="mixerzoo",
    help="MLP-Mixer in PyTorch: list, inspect, predict, train, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("list")(models.list_command)
app.command("info")(models.info_command)
app.command("predict")(predict.predict_command)
app.command("train")(train.train_command)
app.command("bench")(bench.bench_command)


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
