"""Checkpoints of a run: written in the background by every process together, whole or not at all, the newest kept.

A checkpoint is a folder ``checkpoints/step-00001234`` with ``run.json`` (plain values) and torch's distributed format,
which any number of processes can read. It is written under another name and renamed when it is complete, so a kill at
any moment leaves the checkpoints that were there. torch's format unpickles: only open checkpoints of your own.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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

from mixerzoo.distributed import World
from mixerzoo.errors import StorageError, TrainingError

FORMAT = 3
FOLDER = "checkpoints"
_RUN_FILE, _PARTIAL = "run.json", ".partial"


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
        # Of its own: the background thread's messages never mix with those of training.
        self._group = _own_group() if world.size > 1 else None

    def __enter__(self) -> Checkpoints:
        self._context.enter_context(_one_process_is_fine())  # here, because the thread that writes may not set filters
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or self.world.size == 1:  # of a job that fails, another process may be gone
                self.finish()
        finally:
            self._context.close()

    def save(self, state: TrainState, run: dict[str, Any]) -> None:
        """Copy the state and write it in the background, after the checkpoint before has been written.

        Raises:
            StorageError: The checkpoint before could not be written.
        """
        self.finish()
        final = self.folder / f"step-{run['step']:08d}"
        partial = final.with_name(final.name + _PARTIAL)
        if self.world.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in self.folder.glob(f"*{_PARTIAL}"):
                shutil.rmtree(left_over)
            partial.mkdir()
            (partial / _RUN_FILE).write_text(json.dumps({"format": FORMAT, **run}), encoding="utf-8")
        self.world.wait()
        future = async_save(
            state.tensors(),
            storage_writer=FileSystemWriter(partial),
            process_group=self._group,
            no_dist=self.world.size == 1,
        )
        assert isinstance(future, Future)
        self._pending = final, future

    def finish(self) -> Path | None:
        """Wait for the checkpoint that is being written, and return its folder; None if none was.

        Raises:
            StorageError: It could not be written; those before are untouched.
        """
        if self._pending is None:
            return None
        (final, future), self._pending = self._pending, None
        try:
            future.result()
            if self.world.is_first:
                self._publish(final)
        except (Exception, CheckpointException) as error:
            raise StorageError(
                f"The checkpoint {final.name} could not be written to {self.folder} ({_cause(error)}): free space or "
                "mend the folder, and resume."
            ) from None
        self.world.wait()
        return final

    def poll(self) -> None:
        """Put a checkpoint in place as soon as it is written (first process only; the others need not know)."""
        if self._pending is not None and self.world.is_first and self._pending[1].done():
            final, future = self._pending
            if future.exception() is None:  # else finish() says so
                self._publish(final)

    def _publish(self, final: Path) -> None:
        partial = final.with_name(final.name + _PARTIAL)
        if not partial.exists():
            return  # poll was here before
        if final.exists():  # unreadable, or it would have been resumed from
            shutil.rmtree(final)
        partial.rename(final)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the rename outlasts a power cut
        finally:
            os.close(descriptor)
        for old in complete(self.folder)[: -self.keep]:
            shutil.rmtree(old)


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
        raise TrainingError(_damaged(checkpoint.folder, error)) from None


def _damaged(folder: Path, error: BaseException) -> str:
    return f"{folder} cannot be read ({_cause(error)}): delete that folder to go on from the checkpoint before it."


def _cause(error: BaseException) -> str:
    """What went wrong, in one line; torch wraps the errors of all processes in one that is no ``Exception``."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    reason = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def check_same(what: str, was: dict[str, Any], now: dict[str, Any], out_dir: Path) -> None:
    """Raise TrainingError unless a run is resumed with the settings that it was started with."""
    now = json.loads(json.dumps(now))  # as it was stored: tuples are lists
    changed = [f"{name} {was.get(name)!r} -> {value!r}" for name, value in now.items() if was.get(name) != value]
    if changed or was.keys() != now.keys():
        raise TrainingError(
            f"{out_dir} holds a run with another {what} ({', '.join(changed)}): choose another --out, or the same "
            "settings."
        )


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
