"""Compiling ``mixer.cpp`` on the machine where it runs, once: the result is kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from mixerzoo.errors import BuildError
from mixerzoo.kernels.cpu.packing import Format

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-mtune=native", "-w")
_VECTORS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c")
INSTRUCTIONS: dict[Format, tuple[str, ...]] = {
    "bf16": (*_VECTORS, "-mavx512bf16"),
    "int8": (*_VECTORS, "-mavx512vnni"),
}
CLASSES: dict[Format, str] = {"bf16": "Bf16", "int8": "Int8"}
_SOURCES = Path(__file__).parent


def compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX``, else g++ or clang++; None where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


@functools.cache
def library(number: Format) -> ctypes.CDLL:
    """The compiled code for one number format, from the cache or compiled now (two seconds).

    Raises:
        BuildError: There is no compiler, it fails, or the cache folder cannot be written.
    """
    path = compiler()
    if path is None:
        raise BuildError("no C++ compiler was found: install g++ or clang++, or name one in CXX")
    command = [path, *FLAGS, *INSTRUCTIONS[number], f"-DFORMAT={CLASSES[number]}"]
    target = _cache() / f"mixer-{number}-{_fingerprint(command)}.so"
    if not target.exists():
        _compile(command, target)
    return ctypes.CDLL(str(target))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mixerzoo"


def _fingerprint(command: list[str]) -> str:
    """What the compiled code depends on: sources, compiler, flags, processor."""
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout  # noqa: S603
    parts = [*command, version, _processor()]
    parts += [source.read_text() for source in sorted(_SOURCES.glob("*.h")) + sorted(_SOURCES.glob("*.cpp"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "model\t", "cpu family"))}))


def _compile(command: list[str], target: Path) -> None:
    """Compile to a temporary name and move into place, so that no process ever loads half a file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            done = subprocess.run(  # noqa: S603
                [*command, str(_SOURCES / "mixer.cpp"), "-o", str(built)], capture_output=True, text=True
            )
            if done.returncode:
                raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-300:] or f'status {done.returncode}'}")
            built.replace(target)
    except OSError as error:
        raise BuildError(f"the compiled code cannot be kept in {target.parent}: {error}") from error
