"""``mixerzoo bench``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mixerzoo.bench import load
from mixerzoo.bench.circumstances import circumstances


def bench_command(
    suite: Annotated[Literal["load"], typer.Option(help="What to measure: load times create, load, first forward.")],
) -> None:
    """Measure against timm on this machine."""
    typer.echo("  ".join(f"{key} {value}" for key, value in circumstances().items()))
    typer.echo({"load": load.report}[suite]())
