"""What a run's record says of the machine: device, versions, memory."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

import timm
import torch

from mixerzoo import __version__

_GIB = 2**30
_OPTIONAL = ("webdataset", "datasets", "triton")


def device_name(device: torch.device) -> str:
    """What a person calls the device: the card's name, or the processor and the threads that PyTorch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def versions() -> dict[str, str]:
    """Python, PyTorch, timm, this package, and those optional packages that this process has imported."""
    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": str(timm.__version__),
        "mixerzoo": __version__,
    }
    for name in _OPTIONAL:
        if name in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found


def memory_gib(device: torch.device) -> float | None:
    """Memory in GiB: a card's peak since the process began, else what of this process is resident now.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / _GIB
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        import resource
    except (OSError, ValueError, IndexError, ImportError):  # not Linux
        return None
    return pages * resource.getpagesize() / _GIB


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
