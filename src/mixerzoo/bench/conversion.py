"""What converting a Flax file costs, and loading the result: time against the disk, memory against the file.

A Flax archive of real size with random weights is converted in a process of its own, each time after a plain copy of
the same file (read, written and flushed to disk), which is what the disk allows at that moment.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from mixerzoo.config import PRESETS
from mixerzoo.errors import ConfigError
from mixerzoo.factory import create_model
from mixerzoo.model import Mixer
from mixerzoo.weights.google import linen_names

MODEL = "mixer_l16"
_CHILD = """
import json, sys, time
from mixerzoo.conversion import convert
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
before, start = memory("VmRSS"), time.perf_counter()
convert(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "MiB": memory("VmHWM") - before}))
"""


def _write_flax(path: Path) -> None:
    """A linen archive with random weights."""
    config = PRESETS[MODEL]
    state = Mixer.from_config(config, device="meta").state_dict()
    arrays = {}
    for key, (module, kind) in linen_names(config.depth, with_head=True).items():
        tensor = torch.randn(state[f"{module}.{'bias' if kind == 'bias' else 'weight'}"].shape) * 0.02
        if kind == "kernel":
            tensor = tensor.t() if tensor.ndim == 2 else tensor.permute(2, 3, 1, 0)
        arrays[key] = tensor.contiguous().numpy()
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _forget(path: Path) -> None:
    """Drop a file from the page cache, so that reading it asks the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _copy(source: Path, target: Path) -> float:
    """Seconds to copy a file from disk to disk."""
    _forget(source)
    start = time.perf_counter()
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 22)
        write.flush()
        os.fsync(write.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def _convert(source: Path, target: Path) -> dict[str, float]:
    _forget(source)
    command = [sys.executable, "-c", _CHILD, str(source), str(target)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    measured: dict[str, float] = json.loads(output)
    return measured


def _median_seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def report(repeats: int = 7) -> str:
    """Measure and lay the figures out as lines; needs 2.5 GB of temporary disk space.

    Raises:
        ConfigError: This is not Linux (memory is read from ``/proc``).
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError("The conversion's memory and disk are measured with what only Linux offers; run it there.")
    with tempfile.TemporaryDirectory(prefix="mixerzoo-bench-") as temporary:
        folder = Path(temporary)
        source = folder / "Mixer.npz"
        _write_flax(source)
        size = source.stat().st_size / 2**20
        copies, conversions = [], []
        for i in range(repeats):
            copies.append(_copy(source, folder / "copy"))
            conversions.append(_convert(source, folder / str(i)))
            if i:
                shutil.rmtree(folder / str(i))
        weights = folder / "0" / "model.safetensors"
        plain = _median_seconds(lambda: load_file(weights), repeats)
        ours = _median_seconds(lambda: create_model(MODEL, checkpoint_path=weights), repeats)
    ratio = statistics.median(c["seconds"] / copy for c, copy in zip(conversions, copies, strict=True))
    copied = statistics.median(copies)
    converted = statistics.median(c["seconds"] for c in conversions)
    peak = max(c["MiB"] for c in conversions)
    return "\n".join(
        [
            f"{MODEL}: a Flax file of {size:.0f} MiB, {PRESETS[MODEL].num_parameters:,} parameters",
            f"  copied from disk to disk   {copied:6.2f} s",
            f"  converted                  {converted:6.2f} s   {ratio:.2f} of the copy (median of pairs)",
            f"  memory above the baseline  {peak:6.0f} MiB {peak / size:.2f} of the file",
            f"  safetensors' load_file     {plain:6.3f} s",
            f"  created and loaded         {ours:6.3f} s   {ours - plain:+.3f} s",
        ]
    )
