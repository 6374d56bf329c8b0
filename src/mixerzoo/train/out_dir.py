"""The folder of a run: whose it is, and that only one job writes into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from mixerzoo.distributed import World
from mixerzoo.errors import TrainingError
from mixerzoo.train.checkpoint import FOLDER
from mixerzoo.train.options import RunOptions
from mixerzoo.train.watch import LOG_FILE
from mixerzoo.weights.files import WEIGHTS_FILE

_LOCK = ".lock"


@contextmanager
def only_one(options: RunOptions, world: World) -> Iterator[None]:
    """Hold the run's folder for this job; one that nothing was written into is removed again.

    Raises:
        TrainingError: It is no folder, holds a run that is not to be gone on with, or another job holds it.
    """
    out_dir = options.out_dir
    if out_dir.exists() and not out_dir.is_dir():
        raise TrainingError(f"{out_dir} is not a folder: choose another --out.")
    if not options.resume and any((out_dir / name).exists() for name in (FOLDER, WEIGHTS_FILE, LOG_FILE)):
        raise TrainingError(f"{out_dir} already holds a run: add --resume to go on with it, or choose another --out.")
    world.wait()  # all have looked before the first one makes the folder
    if not world.is_first:
        yield
        return
    was_there = out_dir.exists()
    out_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out_dir / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingError(
            f"Another job is training into {out_dir} (it holds {_LOCK}): wait for it, or choose another --out."
        ) from None
    try:
        yield
    finally:
        (out_dir / _LOCK).unlink(missing_ok=True)  # while it is held: who waits for this one must take a new one
        lock.release()
        if not was_there:
            with suppress(OSError):  # it is not empty
                out_dir.rmdir()
