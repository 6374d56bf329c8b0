"""The load race: from a local safetensors file to the first prediction, ours against timm's.

Both sides create the model, load the same file and run one image, alternately in one process. The first forward pass
is timed too, so that nothing is merely deferred to it. The import race times whole Python processes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mixerzoo.factory import create_model

MODELS = ("mixer_b16", "mixer_l16")


@dataclass(frozen=True)
class LoadTimes:
    """Medians in seconds.

    Attributes:
        create: Creating the model and loading the file.
        first: The first forward pass on one image.
        second: The second forward pass.
    """

    create: float
    first: float
    second: float


@dataclass(frozen=True)
class LoadRaces:
    """What both races came to.

    Attributes:
        loading: Our medians and timm's, by model.
        importing: Seconds to import mixerzoo, and torch and timm alone.
    """

    loading: Mapping[str, tuple[LoadTimes, LoadTimes]]
    importing: tuple[float, float]

    def create_ratio(self, name: str) -> float:
        """How many times as long as ours timm's creating and loading takes."""
        ours, theirs = self.loading[name]
        return theirs.create / ours.create

    def first_ratio(self, name: str) -> float:
        """The same up to the first prediction, so that nothing is merely deferred."""
        ours, theirs = self.loading[name]
        return (theirs.create + theirs.first) / (ours.create + ours.first)

    @property
    def import_overhead(self) -> float:
        """Seconds that importing mixerzoo takes beyond importing torch and timm."""
        ours, base = self.importing
        return ours - base

    def __str__(self) -> str:
        """A table."""
        lines = ["seconds            create+load  first forward  second forward"]
        for name, sides in self.loading.items():
            for side, t in zip(("mixerzoo", "timm"), sides, strict=True):
                lines.append(f"{name} {side:9}  {t.create:10.3f}  {t.first:13.3f}  {t.second:14.3f}")
            lines.append(
                f"{name} timm / mixerzoo: create+load {self.create_ratio(name):.1f}x, "
                f"up to the first prediction {self.first_ratio(name):.1f}x"
            )
        ours, base = self.importing
        lines.append(f"import mixerzoo {ours:.2f}, torch and timm alone {base:.2f}: {self.import_overhead:+.2f}")
        return "\n".join(lines)


def time_loading(build: Callable[[], nn.Module], image: torch.Tensor) -> LoadTimes:
    """Time one creation and two forward passes."""
    start = time.perf_counter()
    model = build().eval()
    created = time.perf_counter()
    with torch.inference_mode():
        model(image)
        first = time.perf_counter()
        model(image)
        second = time.perf_counter()
    return LoadTimes(created - start, first - created, second - first)


def race_loading(name: str, repeats: int = 5) -> tuple[LoadTimes, LoadTimes]:
    """Race one variant from a file with random weights, after one uncounted round.

    Returns:
        Our medians, and timm's.
    """
    image = torch.randn(1, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        state = {n: torch.randn_like(t) * 0.02 for n, t in create_model(name).state_dict().items()}
        save_file(state, path)
        del state
        sides: tuple[list[LoadTimes], list[LoadTimes]] = ([], [])
        for _ in range(repeats + 1):
            sides[0].append(time_loading(lambda: create_model(name, checkpoint_path=path), image))
            sides[1].append(time_loading(lambda: timm.create_model(f"{name}_224", checkpoint_path=str(path)), image))
    ours, theirs = (_medians(side[1:]) for side in sides)
    return ours, theirs


def race_import(repeats: int = 7) -> tuple[float, float]:
    """Median seconds of processes that import mixerzoo, and of those that import torch and timm."""

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603
        return time.perf_counter() - start

    pairs = [(run("import mixerzoo"), run("import torch, timm")) for _ in range(repeats + 1)][1:]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def _medians(times: list[LoadTimes]) -> LoadTimes:
    return LoadTimes(
        statistics.median(t.create for t in times),
        statistics.median(t.first for t in times),
        statistics.median(t.second for t in times),
    )


def run_races() -> LoadRaces:
    """Run the load race of every model, and the import race."""
    return LoadRaces({name: race_loading(name) for name in MODELS}, race_import())


def report() -> str:
    """Run both races and lay the figures out as a table."""
    return str(run_races())
