"""Checkpoints of a run: written in the background by every process together, whole or not at all, the newest kept.

A checkpoint is a folder ``checkpoints/step-00001234`` with ``run.json`` (plain values) and torch's distributed format,
which any number of processes can read. It is written under another name and renamed when it is complete, so a kill at
any moment leaves the checkpoints that were there. torch's format unpickles: only open checkpoints of your own.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial as partial_function
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from mixerzoo.atomic import write_atomically
from mixerzoo.distributed import World, is_of_another_process
from mixerzoo.errors import StorageError, TrainingError

FORMAT = 3
FOLDER = "checkpoints"
_RUN_FILE, _PARTIAL = "run.json", ".partial"
_MANY = 12
_PATIENCE = 60.0  # seconds that a failing process of a job waits for a checkpoint which is being written
_ANOTHER = "another process of the job failed or cannot be reached; its own message says why."


@dataclass(frozen=True)
class TrainState:
    """What is saved beside ``run.json``.

    Attributes:
        model: The model itself, without DDP around it.
        ema: Its average, if the recipe has one.
        optimizer: Of the model's parameters.
    """

    model: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, Any]:
        """State dicts by part; shared storage, not copies."""
        parts: dict[str, Any] = {"model": get_model_state_dict(self.model)}
        if self.ema is not None:
            parts["ema"] = get_model_state_dict(self.ema)
        parts["optimizer"] = get_optimizer_state_dict(self.model, self.optimizer)
        return parts

    def load(self, folder: Path) -> None:
        """Fill every part from a checkpoint's folder, written by any number of processes."""
        parts = self.tensors()
        with _one_process_is_fine():
            load(parts, storage_reader=FileSystemReader(folder))
        set_model_state_dict(self.model, parts["model"])
        if self.ema is not None:
            set_model_state_dict(self.ema, parts["ema"])
        set_optimizer_state_dict(self.model, self.optimizer, parts["optimizer"])


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint.

    Attributes:
        folder: Where it is.
        run: The plain values saved with it; ``run["step"]`` steps were done.
    """

    folder: Path
    run: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run; a context in which they are written.

    Args:
        out_dir: The run's folder.
        world: The job; every process takes part in every call.
        keep: How many complete checkpoints stay, the newest.
    """

    def __init__(self, out_dir: Path, world: World, keep: int):
        self.folder, self.world, self.keep = out_dir / FOLDER, world, keep
        self._pending: tuple[Path, Future[Any]] | None = None
        self._context = ExitStack()
        self._lock = threading.Lock()
        # Of its own: the background thread's messages never mix with those of training.
        self._group = _own_group() if world.size > 1 else None

    def __enter__(self) -> Checkpoints:
        self._context.enter_context(_one_process_is_fine())  # here, because the thread that writes may not set filters
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or self.world.size == 1:
                self.finish()
            elif self._pending is not None:  # another process may be gone: wait for none
                final, future = self._pending
                written = future in wait([future], timeout=_PATIENCE).done and future.exception() is None
                if written and self.world.is_first:
                    self._publish(final)
        finally:
            self._context.close()

    def save(self, state: TrainState, run: dict[str, Any]) -> None:
        """Copy the state and write it in the background, after the checkpoint before has been written.

        Raises:
            StorageError: This checkpoint, or the one before, could not be written.
        """
        self.finish()
        final = self.folder / f"step-{run['step']:08d}"
        partial = final.with_name(final.name + _PARTIAL)
        try:
            if self.world.is_first:
                self._begin(partial, run)
            self.world.wait()
            future = async_save(
                state.tensors(),
                storage_writer=FileSystemWriter(partial),
                process_group=self._group,
                no_dist=self.world.size == 1,
            )
        except (OSError, CheckpointException) as error:
            raise self._failed(final, error) from None
        assert isinstance(future, Future)
        self._pending = final, future
        if self.world.is_first:
            future.add_done_callback(partial_function(self._publish_if_written, final))

    def finish(self) -> Path | None:
        """Wait for the checkpoint that is being written, and return its folder; None if none was.

        Raises:
            StorageError: It could not be written; those before are untouched.
        """
        if self._pending is None:
            return None
        final, future = self._pending
        try:
            future.result()
            if self.world.is_first:
                self._publish(final)
        except (Exception, CheckpointException) as error:
            self._pending = None
            raise self._failed(final, error) from None
        self._pending = None
        self.world.wait()
        return final

    def _begin(self, partial: Path, run: dict[str, Any]) -> None:
        """Make the folder to write into, with ``run.json``; what killed runs left goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_over in self.folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(left_over)
        partial.mkdir()
        content = json.dumps({"format": FORMAT, **run})
        write_atomically(partial / _RUN_FILE, lambda path: path.write_text(content, encoding="utf-8"))

    def _publish_if_written(self, final: Path, future: Future[Any]) -> None:
        if future.exception() is None:
            with suppress(OSError):  # finish() tries again, and says so
                self._publish(final)

    def _publish(self, final: Path) -> None:
        """Give a checkpoint that is written its name, and remove the oldest; whoever comes first does it."""
        partial = final.with_name(final.name + _PARTIAL)
        with self._lock:
            if not partial.exists():
                return
            if final.exists():  # unreadable, or it would have been resumed from
                _remove(final)
            _sync(partial)
            partial.rename(final)
            _sync(self.folder)  # the rename outlasts a power cut
            for old in complete(self.folder)[: -self.keep]:
                _remove(old)

    def _failed(self, final: Path, error: BaseException) -> StorageError:
        if is_of_another_process(_innermost(error)):
            return StorageError(f"The checkpoint {final.name} was not finished: {_ANOTHER}")
        return StorageError(
            f"The checkpoint {final.name} could not be written to {self.folder} ({_cause(error)}): free space or mend "
            "the folder, and resume."
        )


def _remove(folder: Path) -> None:
    """Remove a checkpoint; killed in between, what is left is not taken for one."""
    doomed = folder.with_name(f"{folder.name}.old{_PARTIAL}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's checkpoint folder, oldest first."""
    found = (path for path in folder.glob("step-*") if path.suffix != _PARTIAL)
    return sorted(path for path in found if (path / ".metadata").exists() and (path / _RUN_FILE).exists())


def newest(out_dir: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run; None if there is none.

    Raises:
        TrainingError: It is damaged or of another format.
    """
    found = complete(out_dir / FOLDER)
    if not found:
        return None
    try:
        run = json.loads((found[-1] / _RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(_damaged(found[-1], error)) from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise TrainingError(
            f"{found[-1]} is not a training checkpoint of this version of mixerzoo: choose another --out."
        )
    return Checkpoint(found[-1], run)


def restore(checkpoint: Checkpoint, state: TrainState) -> None:
    """Load a checkpoint into a run of the same model and recipe.

    Raises:
        TrainingError: It is damaged.
    """
    try:
        state.load(checkpoint.folder)
    except (Exception, CheckpointException) as error:  # whatever torch runs into in a damaged file
        if is_of_another_process(_innermost(error)):
            raise TrainingError(f"{checkpoint.folder} was not read: {_ANOTHER}") from None
        raise TrainingError(_damaged(checkpoint.folder, error)) from None


def _damaged(folder: Path, error: BaseException) -> str:
    return f"{folder} cannot be read ({_cause(error)}): delete that folder to go on from the checkpoint before it."


def _innermost(error: BaseException) -> BaseException:
    """torch wraps the errors of all processes in one that is no ``Exception``."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def _cause(error: BaseException) -> str:
    """What went wrong, in one line."""
    error = _innermost(error)
    reason = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def check_same(what: str, was: dict[str, Any], now: dict[str, Any], out_dir: Path) -> None:
    """Raise TrainingError unless a run is resumed with the settings that it was started with."""
    now = json.loads(json.dumps(now))  # as it was stored: tuples are lists
    changed = [
        f"{name} {_brief(was.get(name))} -> {_brief(value)}" for name, value in now.items() if was.get(name) != value
    ]
    if changed or was.keys() != now.keys():
        raise TrainingError(
            f"{out_dir} holds a run with another {what} ({', '.join(changed)}): choose another --out, or the same "
            "settings."
        )


def _brief(value: Any) -> str:
    """A value for a sentence: of a long list, how many it has."""
    return f"{len(value)} names" if isinstance(value, list) and len(value) > _MANY else repr(value)


def _own_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every process of the job is in it
    return group


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Without torch's warning that one process alone is not distributed, which is how a laptop trains."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load) in a single process.*")
        yield
