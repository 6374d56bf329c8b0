"""``mixerzoo bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mixerzoo.bench import conversion, kernels, load
from mixerzoo.bench.circumstances import circumstances
from mixerzoo.bench.gpu.suite import Request, run_suite
from mixerzoo.errors import ConfigError


def bench_command(
    suite: Annotated[
        Literal["load", "convert", "gpu", "kernels"],
        typer.Option(
            help="load: create, load, first forward. convert: a Flax file of 794 MiB, time and memory. gpu: the fused "
            "operations on a CUDA device. kernels: what they take on cards that need not be there, as Markdown."
        ),
    ],
    part: Annotated[
        Literal["correctness", "ops", "tiles"] | None,
        typer.Option(help="gpu: whether results are right, how fast each contender is, or each tile."),
    ] = None,
    out: Annotated[Path, typer.Option(help="gpu: folder for gpu-PART.jsonl and gpu-PART.json.")] = Path("."),
    minutes: Annotated[float, typer.Option(help="gpu: how long it may take; what is left by then is named.")] = 8.0,
    match: Annotated[str, typer.Option(help="gpu: run only cases whose label contains this.")] = "",
    record: Annotated[
        bool, typer.Option("--record", help="gpu: enter this card into the package's table (from a source tree).")
    ] = False,
) -> None:
    """Measure on this machine."""
    if suite == "gpu":
        if part is None:
            raise ConfigError("The GPU suite has three parts: give --part correctness, --part ops or --part tiles.")
        if not run_suite(Request(part, out, minutes, record, match), typer.echo):
            raise typer.Exit(1)
        return
    if part or record or match:
        raise ConfigError(f"--part, --match and --record belong to --suite gpu, not to {suite}.")
    if suite == "kernels":
        typer.echo(kernels.report())
        return
    typer.echo("  ".join(f"{key} {value}" for key, value in circumstances().items()))
    typer.echo({"load": load.report, "convert": conversion.report}[suite]())
