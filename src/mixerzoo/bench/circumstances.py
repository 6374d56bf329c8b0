"""What a figure needs beside it: machine, versions, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import timm
import torch


def circumstances() -> dict[str, str | int]:
    """Processor, threads, versions and date of this run."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def race_circumstances(device: str, threads: int, packages: Iterable[str]) -> dict[str, str | int]:
    """Those of the device, with the command line and the versions of packages.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        threads: Threads of each contender on the CPU.
        packages: Names of what is compared with.
    """
    found = gpu_circumstances() if device == "cuda" else circumstances() | {"command": _command()}
    return found | {"threads": threads} | {package: _version(package) for package in packages}


def gpu_circumstances() -> dict[str, str | int]:
    """Those of :func:`circumstances`, with the command line, Triton, and the CUDA card if there is one."""
    found = circumstances() | {"command": _command(), "triton": _version("triton")}
    if not torch.cuda.is_available():
        return found | {"gpu": "none"}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return found | {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory GiB": round(properties.total_memory / 2**30),
        "L2 MiB": round(properties.L2_cache_size / 2**20),
        "cuda": str(torch.version.cuda),
        "driver": _driver(),
    }


def _command() -> str:
    program = "python -m mixerzoo.bench.gpu" if Path(sys.argv[0]).parent.name == "gpu" else "mixerzoo"
    return f"{program} {shlex.join(sys.argv[1:])}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    """Version of the NVIDIA driver, from the tool that comes with it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split()  # noqa: S603
    return lines[0] if lines else "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
