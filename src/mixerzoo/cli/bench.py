"""``mixerzoo bench``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mixerzoo.bench import conversion, load
from mixerzoo.bench.circumstances import circumstances


def bench_command(
    suite: Annotated[
        Literal["load", "convert"],
        typer.Option(help="load: create, load, first forward. convert: a Flax file of 794 MiB, time and memory."),
    ],
) -> None:
    """Measure on this machine."""
    typer.echo("  ".join(f"{key} {value}" for key, value in circumstances().items()))
    typer.echo({"load": load.report, "convert": conversion.report}[suite]())
