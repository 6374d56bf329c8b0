"""``mixerzoo bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from mixerzoo.bench import agreement, conversion, kernels, load
from mixerzoo.bench.circumstances import circumstances
from mixerzoo.bench.gpu.parts import run_part
from mixerzoo.bench.gpu.request import Part, Request
from mixerzoo.bench.race.cpu_suite import CpuSuite, run_cpu_suite
from mixerzoo.bench.race.single import SingleRace, race_once
from mixerzoo.errors import ConfigError

Suite = Literal["cpu", "gpu", "load", "convert", "kernels", "agreement"]

_RACE = "--model"
_BELONGS: Mapping[str, tuple[str, ...]] = {
    "--batch-size": (_RACE,),
    "--dtype": (_RACE,),
    "--peers": (_RACE,),
    "--device": (_RACE,),
    "--threads": (_RACE, "--suite cpu"),
    "--rounds": (_RACE, "--suite cpu"),
    "--minutes": ("--suite cpu", "--suite gpu"),
    "--out": (_RACE, "--suite cpu", "--suite gpu"),
    "--part": ("--suite gpu",),
    "--match": ("--suite gpu",),
    "--record": ("--suite gpu",),
    "--data": ("--suite agreement",),
}
"""What each option is for."""


def bench_command(
    suite: Annotated[
        Suite | None,
        typer.Option(
            help="cpu: every target for the CPU. gpu: one part of those for a CUDA device. load: create, load, first "
            "forward. convert: a Flax file of 794 MiB, time and memory. kernels: what the fused operations take on "
            "cards that need not be there, as Markdown. agreement: reduced precisions against float32 on --data."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Race this variant against its peers, for instance mixer_b16.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Images of a call; several may follow: --batch-size 1 8 (default: 1).")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, int8 or fp8 (default: bf16).")] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(help="Whom to race; several may follow: --peers timm openvino (default: everybody)."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="Where to race (default: cpu).")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each contender on the CPU (default: one for each core).")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="How often each contender is asked (default: 7).")] = None,
    part: Annotated[
        Part | None,
        typer.Option(
            help="gpu: whether the operations are right, how fast each contender is, or each tile; or races of whole "
            "models: Mixer-B/16, all others, one image, FP8, a training step."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what a race, the CPU or the GPU suite writes (default: this one).")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="How long a suite may take; what is left by then is named (default: gpu 8).")
    ] = None,
    match: Annotated[str, typer.Option(help="gpu: run only what has this in its label or title.")] = "",
    record: Annotated[
        bool, typer.Option("--record", help="gpu: enter this card into the package's table (from a source tree).")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="agreement: folder with CIFAR-10 as test/<class>/*.jpg.")] = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Measure on this machine: race a model against its peers, or run a suite."""
    batch_size, peers = _share_out(more or [], batch_size, peers)
    if (suite is None) == (model is None):
        raise ConfigError(f"mixerzoo bench needs either --model NAME or --suite {', '.join(get_args(Suite))}.")
    given = {
        "--batch-size": batch_size,
        "--dtype": dtype,
        "--peers": peers,
        "--device": device,
        "--threads": threads,
        "--rounds": rounds,
        "--minutes": minutes,
        "--out": out,
        "--part": part,
        "--match": match or None,
        "--record": record or None,
        "--data": data,
    }
    _check_options(f"--suite {suite}" if suite else _RACE, [name for name, value in given.items() if value is not None])
    rounds, out = 7 if rounds is None else rounds, out or Path(".")
    if model is not None:
        request = SingleRace(model, batch_size or [1], dtype or "bf16", device or "cpu", peers, threads, rounds, out)
        passed = race_once(request, typer.echo)
    elif suite == "cpu":
        passed = run_cpu_suite(CpuSuite(out, threads, rounds, minutes), typer.echo)
    elif suite == "gpu":
        if part is None:
            raise ConfigError(f"The GPU suite runs one part at a time: give --part {', '.join(get_args(Part))}.")
        passed = run_part(Request(part, out, 8.0 if minutes is None else minutes, record, match), typer.echo)
    else:
        passed = True
        _run_simple(suite, data)
    if not passed:
        raise typer.Exit(1)


def _run_simple(suite: Suite | None, data: Path | None) -> None:
    """A suite that only prints."""
    if suite == "agreement" and data is None:
        raise ConfigError("The agreement suite needs --data FOLDER with CIFAR-10 as test/<class>/*.jpg.")
    if suite == "kernels":
        typer.echo(kernels.report())
        return
    typer.echo("  ".join(f"{key} {value}" for key, value in circumstances().items()))
    if data is not None:
        typer.echo(agreement.report(data))
    else:
        typer.echo(load.report() if suite == "load" else conversion.report())


def _share_out(
    more: Sequence[str], batch_size: list[int] | None, peers: list[str] | None
) -> tuple[list[int] | None, list[str] | None]:
    """Give further values to the option they belong to.

    An option takes one value, and what stands behind it arrives as arguments: of the two options that may have several,
    numbers belong to ``--batch-size`` and names to ``--peers``.
    """
    for value in more:
        if value.isdecimal() and batch_size is not None:
            batch_size = [*batch_size, int(value)]
        elif not value.isdecimal() and peers is not None:
            peers = [*peers, value]
        else:
            raise ConfigError(f"{value!r} belongs to no option; --batch-size and --peers take several values.")
    return batch_size, peers


def _check_options(mode: str, given: Sequence[str]) -> None:
    """Refuse options that would have no effect."""
    for option in given:
        if mode not in _BELONGS[option]:
            raise ConfigError(f"{option} belongs to {' and '.join(_BELONGS[option])}, not to {mode}.")
