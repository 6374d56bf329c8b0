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


def gpu_circumstances() -> dict[str, str | int]:
    """Those of :func:`circumstances`, with the command line, Triton, and the CUDA card if there is one."""
    program = "python -m mixerzoo.bench.gpu" if Path(sys.argv[0]).parent.name == "gpu" else "mixerzoo"
    command = f"{program} {shlex.join(sys.argv[1:])}"
    found = circumstances() | {"command": command, "triton": _version("triton")}
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
