"""Compiling ``mixer.cpp`` on the machine where it runs, once: the result is kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from mixerzoo.errors import BuildError
from mixerzoo.kernels.cpu.packing import Format

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-mtune=native", "-w")
_VECTORS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c")
INSTRUCTIONS: dict[Format, tuple[str, ...]] = {
    "bf16": (*_VECTORS, "-mavx512bf16", "-DFORMAT=Bf16"),
    "int8": (*_VECTORS, "-mavx512vnni", "-DFORMAT=Int8"),
}
_SOURCES = Path(__file__).parent


def compiler() -> list[str] | None:
    """Command of the C++ compiler: ``$CXX``, else g++ or clang++; None where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    commands = [named] if named else [["g++"], ["clang++"]]
    return next((command for command in commands if shutil.which(command[0])), None)


@functools.cache
def library(number: Format) -> ctypes.CDLL:
    """The compiled code for one number format, from the cache or compiled now (a few seconds).

    Raises:
        BuildError: There is no compiler, it fails, or its result can be kept or loaded nowhere.
    """
    flags = [*FLAGS, *INSTRUCTIONS[number]]
    reasons = []
    for folder in _folders():
        target = folder / f"mixer-{number}-{_fingerprint(flags)}.so"
        try:
            _check_private(folder)
            if target.exists():
                try:
                    return ctypes.CDLL(str(target))
                except OSError:  # damaged, for instance cut short by a crash: compile it again
                    target.unlink(missing_ok=True)
            _compile(flags, target)
            return ctypes.CDLL(str(target))
        except OSError as error:
            reasons.append(f"{folder} cannot be used: {error}")
    raise BuildError("; ".join(reasons))


def _folders() -> list[Path]:
    """Where compiled code may be kept: the user's cache, or else a folder of the user's own among temporary files."""
    folders = [Path(tempfile.gettempdir()) / f"mixerzoo-{os.getuid()}"]
    with contextlib.suppress(RuntimeError):  # there may be no home
        folders.insert(0, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixerzoo")
    return folders


def _check_private(folder: Path) -> None:
    """Create a folder if need be, and see that nobody else can put code into it.

    Raises:
        OSError: It cannot be created, belongs to somebody else, or others may write to it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("it belongs to somebody else, or others may write to it")


def _fingerprint(flags: list[str]) -> str:
    """What the compiled code depends on: sources, flags, processor."""
    parts = [*flags, _processor()]
    parts += [source.read_text() for source in sorted(_SOURCES.glob("*.h")) + sorted(_SOURCES.glob("*.cpp"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "model\t", "cpu family"))}))


def _compile(flags: list[str], target: Path) -> None:
    """Compile to a temporary name and move into place, so that no process ever loads half a file.

    Raises:
        BuildError: There is no compiler, or it fails.
        OSError: The folder cannot be written.
    """
    command = compiler()
    if command is None:
        named = os.environ.get("CXX")
        what = f"the C++ compiler that CXX names ({named}) does not exist" if named else "there is no C++ compiler"
        raise BuildError(f"{what}: install g++ or clang++, or name one in CXX")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        arguments = [*command, *flags, str(_SOURCES / "mixer.cpp"), "-o", str(built)]
        done = subprocess.run(arguments, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            words = done.stderr.strip()[-300:] or f"status {done.returncode}"
            raise BuildError(f"{shlex.join(command)} failed: {words}")
        built.replace(target)
