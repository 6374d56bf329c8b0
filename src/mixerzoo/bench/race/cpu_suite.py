"""``mixerzoo bench --suite cpu``: every target for the CPU in one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mixerzoo.bench import load
from mixerzoo.bench.folder import FolderRace, race_folder
from mixerzoo.bench.race import targets
from mixerzoo.bench.race.plan import field_of, plan_races
from mixerzoo.bench.race.results import RaceResult
from mixerzoo.bench.race.runner import Say
from mixerzoo.bench.race.several import open_report, run_all
from mixerzoo.bench.race.targets import Target
from mixerzoo.bench.race.terms import OURS, Dtype
from mixerzoo.errors import ConfigError

_PEERS: dict[Dtype, tuple[str, ...]] = {
    "bf16": (f"{OURS}-compile", "timm", "timm-compile", "openvino", "onnxruntime"),
    "int8": ("openvino", "onnxruntime", "torchao"),
}
_RIVALS: dict[Dtype, tuple[tuple[str, Dtype], ...]] = {
    "bf16": (("timm-compile", "bf16"), ("openvino", "bf16"), ("onnxruntime", "fp32")),
    "int8": (("openvino", "int8"),),
}
"""Whom ours must be at least as fast as."""

_FULLY_USED = ("mixer_b16", 8, 97.0)  # the race with a bound on the share of the GEMM rate, and the bound in percent


@dataclass(frozen=True)
class CpuSuite:
    """What is run.

    Attributes:
        out: Folder for ``suite-cpu.json`` and charts.
        threads: Threads of each contender; None for one for each physical core.
        rounds: How often each is asked.
        minutes: When nothing new starts; None for no limit.
        models: Variants to race.
        batch_sizes: Batch sizes to race at.
        with_loading: Whether the races of loading, importing and files are run as well.
    """

    out: Path
    threads: int | None = None
    rounds: int = 7
    minutes: float | None = None
    models: Sequence[str] = ("mixer_b16", "mixer_s16")
    batch_sizes: Sequence[int] = (1, 8)
    with_loading: bool = True


def run_cpu_suite(suite: CpuSuite, say: Say) -> bool:
    """Run the races of whole models, in bfloat16 and int8, then those of loading, importing and files.

    Args:
        suite: What to run.
        say: Receives each line of progress, the tables, and each target with what was measured.

    Returns:
        Whether ours ran and computed what it should in every race.

    Raises:
        ConfigError: A number cannot be used, or the folder holds results of an earlier run.
    """
    if suite.minutes is not None and not suite.minutes > 0:
        raise ConfigError(f"--minutes {suite.minutes} must be more than 0.")
    deadline = time.monotonic() + 60 * (float("inf") if suite.minutes is None else suite.minutes)
    fields = {dtype: field_of(dtype, "cpu", peers) for dtype, peers in _PEERS.items()}
    races = {
        dtype: [
            race
            for model in suite.models
            for race in plan_races(model, suite.batch_sizes, "cpu", field, suite.threads, suite.rounds)
        ]
        for dtype, field in fields.items()
    }
    report = open_report(suite.out, "suite-cpu", races["bf16"][0], say)
    results = [
        result for dtype, field in fields.items() for result in run_all(races[dtype], field, report, say, deadline)
    ]
    loaded = files = None
    if suite.with_loading and time.monotonic() < deadline:
        torch.set_num_threads(races["bf16"][0].threads)
        loaded, files = load.run_races(), race_folder()
        report.note(load=loaded, folder=files)
        say(f"{loaded}\n{files}")
    report.finish(say, cpu_targets(results, loaded, files))
    return all(result.lanes[0].counts for result in results)


def cpu_targets(results: Sequence[RaceResult], loaded: load.LoadRaces | None, files: FolderRace | None) -> list[Target]:
    """The targets that races of whole models, of loading, of importing and of files have something to say about.

    Args:
        results: Races, each with ours first.
        loaded: The load and import races; None if they were not run.
        files: The race of a folder of photographs; None if it was not run.
    """
    found = []
    for result in results:
        ours, race = result.lanes[0], result.race
        remark = ours.says.partition("\n")[0] if ours.entry.dtype == "int8" else ""
        found.append(targets.against(result, _RIVALS[ours.entry.dtype], 1.0, remark=remark))
        model, batch_size, percent = _FULLY_USED
        if (race.model, race.batch_size, ours.entry.dtype) == (model, batch_size, "bf16"):
            found.append(targets.share_of_products(result, percent))
    if loaded is not None:
        found += [*targets.loading(loaded, 10.0), targets.importing(loaded, 0.1)]
    if files is not None:
        found.append(targets.from_files(files, 90.0))
    return found
