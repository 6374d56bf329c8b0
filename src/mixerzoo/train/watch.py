"""What a person sees of a run while it goes on: one progress bar, a JSON-lines log, TensorBoard scalars.

Every line of ``metrics.jsonl`` has ``step`` (optimiser steps finished) and ``time`` (UTC), and is one of

- training: ``epoch``, ``loss``, ``lr``, ``images_per_second``, ``seconds``, ``memory_gib``;
- an evaluation: ``epoch`` and what was measured (``top1``, ``top5``, ...), as fractions;
- a ``note``.

A number that is NaN or infinite, or that nobody knows, is ``null``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from mixerzoo.atomic import write_atomically
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError, StorageError
from mixerzoo.train.machine import memory_gib

LOG_FILE = "metrics.jsonl"
_EVERY, _LINES = 50, 100  # most steps between two lines; lines that a short run has about
_SHOW_EVERY = 1.0  # seconds between two looks at the loss where looking costs nothing


class Watch:
    """Shows and records a run. Every process of the job has one and calls :meth:`step`; the first one writes.

    Lines are written every ``every`` steps of an epoch, at its end, and at the end of the run; only then a GPU is
    waited for. A run that is resumed loses the lines of steps that it will do again. Files are made when there is
    something to write.

    Args:
        out_dir: Receives ``metrics.jsonl`` and ``tensorboard/``.
        total_steps: Optimiser steps of the whole run.
        steps_per_epoch: Optimiser steps of one epoch; 0 if nobody knows.
        images_per_step: Images of one step over all processes.
        first_step: Steps that were finished before this process began.
        world: The job.
        progress: Show the bar (on a terminal), evaluations and notes.
        tensorboard: Write TensorBoard's event files.
        every: Steps between two lines; 0 for 50, and for fewer in a run of fewer than 5000 steps.

    Raises:
        ConfigError: TensorBoard was asked for and is not installed.
        StorageError: The log cannot be written.
    """

    def __init__(
        self,
        out_dir: Path,
        *,
        total_steps: int,
        steps_per_epoch: int,
        images_per_step: int,
        first_step: int,
        world: World,
        progress: bool,
        tensorboard: bool,
        every: int = 0,
    ):
        self._world, self._shows = world, progress and world.is_first
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._every = every or min(_EVERY, max(1, total_steps // _LINES))
        self._images_per_step = images_per_step
        self._done = self._line_done = first_step
        self._loss: Tensor | float = 0.0
        self._new_events = _event_writers(out_dir, first_step) if tensorboard and world.is_first else None
        self._events: Any = None
        self._path = out_dir / LOG_FILE
        self._evaluated: set[int] = set()
        if world.is_first:
            _check_writable(out_dir)
            self._evaluated = {
                line["step"] for line in trim_log(self._path, first_step) if not {"loss", "note"} & line.keys()
            }
        self._bar: Any = tqdm(
            total=total_steps,
            initial=first_step,  # the speed, and so the time left, is that of this process's own steps
            unit="step",
            smoothing=0.0,
            dynamic_ncols=True,
            disable=None if self._shows else True,  # None: shown on a terminal only
        )
        self._status, self._pauses = "", 0
        self._start = self._shown = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether :meth:`step` will write a line for step number ``step`` (from 0), and so wait for the GPU."""
        done = step + 1
        return done == self._total or (done % self._per_epoch if self._per_epoch else done) % self._every == 0

    def step(self, step: int, loss: Tensor | float, lr: float) -> None:
        """Count one optimiser step; all processes call it, and agree on the mean of their losses where a line is due.

        Args:
            step: The step's number, from 0.
            loss: Mean over this process's images (or over all).
            lr: Learning rate of the step.

        Raises:
            StorageError: The log cannot be written.
        """
        loss = loss.detach().double() if isinstance(loss, Tensor) else loss
        self._loss = self._loss + loss
        self._done = step + 1
        if self.is_due(step):
            self._write_line(lr)
        elif not self._bar.disable and not (isinstance(loss, Tensor) and loss.is_cuda):
            now = time.perf_counter()
            if now - self._shown >= _SHOW_EVERY:
                self._show(loss=f"{float(loss):.4g}", lr=f"{lr:.2e}", **self._speed(now))
        self._bar.update(1)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record and show an evaluation; one that the log already has from before a resume is shown only.

        Args:
            step: Optimiser steps finished.
            metrics: What was measured; accuracies as fractions.

        Raises:
            StorageError: The log cannot be written.
        """
        if not self._world.is_first:
            return
        self._say(f"{self._where(step)}: {', '.join(_in_words(name, value) for name, value in metrics.items())}")
        if step not in self._evaluated:
            self._evaluated.add(step)
            self._record({"step": step, "epoch": self._epoch(step), **metrics})

    def note(self, text: str) -> None:
        """Record and show one line of text, such as a sample that was skipped."""
        if self._world.is_first:
            self._say(text)
            self._append({"step": self._done, "note": text})

    @contextmanager
    def paused(self, doing: str = "") -> Iterator[None]:
        """Leave what happens inside (an evaluation, a checkpoint) out of images per second; may be nested.

        Args:
            doing: What that is; the bar shows it in the meantime.
        """
        before, status = time.perf_counter(), self._status
        self._pauses += 1
        if doing:
            self._show_text(doing)
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:  # the outermost
                self._start += time.perf_counter() - before
            if doing:
                self._show_text(status)

    def close(self) -> None:
        """Take the bar away and finish the event files; can be called twice."""
        self._bar.close()
        if self._events is not None:
            self._events.close()

    def _write_line(self, lr: float) -> None:
        loss, now = self._mean_loss(), time.perf_counter()
        seconds, steps = max(now - self._start, 1e-9), self._done - self._line_done
        memory = memory_gib(self._world.device)
        line = {
            "step": self._done,
            "epoch": self._epoch(self._done),
            "loss": loss,
            "lr": lr,
            "images_per_second": round(steps * self._images_per_step / seconds, 2),
            "seconds": round(seconds, 3),
            "memory_gib": None if memory is None else round(memory, 3),
        }
        self._record(line)
        if not self._bar.disable:
            self._show(loss=f"{loss:.4g}", lr=f"{lr:.2e}", **self._speed(now))
        self._loss, self._line_done, self._start = 0.0, self._done, now

    def _mean_loss(self) -> float:
        """The mean loss of the steps since the last line, over all processes; this waits for the GPU."""
        steps = self._done - self._line_done
        if isinstance(self._loss, Tensor):
            return float(self._world.sum(self._loss)) / self._world.size / steps
        return self._loss / steps

    def _speed(self, now: float) -> dict[str, str]:
        images = (self._done - self._line_done) * self._images_per_step
        memory = memory_gib(self._world.device)
        speed = {"images/s": f"{images / max(now - self._start, 1e-9):.4g}"}
        return speed if memory is None else speed | {"memory": f"{memory:.2f} GiB"}

    def _show(self, **status: str) -> None:
        self._shown = time.perf_counter()
        self._status = ", ".join(f"{name} {value}" for name, value in status.items())
        self._bar.set_postfix_str(self._status, refresh=False)

    def _show_text(self, text: str) -> None:
        """At once, as no step will come for a while."""
        if not self._bar.disable:
            self._status = text
            self._bar.set_postfix_str(text)

    def _say(self, text: str) -> None:
        if self._shows:
            tqdm.write(text)

    def _epoch(self, step: int) -> float | None:
        return round(step / self._per_epoch, 4) if self._per_epoch else None

    def _where(self, step: int) -> str:
        epoch = self._epoch(step)
        return f"step {step}" if epoch is None else f"epoch {epoch:g} (step {step})"

    def _record(self, line: Mapping[str, Any]) -> None:
        if not self._world.is_first:
            return
        self._append(line)
        if self._events is None and self._new_events is not None:
            self._events = self._new_events()
        if self._events is not None:
            for name, value in line.items():
                if name != "step" and value is not None and math.isfinite(value):
                    group = "train" if "loss" in line else "evaluation"
                    self._events.add_scalar(f"{group}/{name}", value, line["step"])
            self._events.flush()

    def _append(self, line: Mapping[str, Any]) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        text = json.dumps(finite({**line, "time": stamp}), allow_nan=False, ensure_ascii=False)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written ({error.strerror or error}).") from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log in order; without a line that a killed process wrote only half of.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror or error}).") from None
    lines = []
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def trim_log(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Remove the lines after ``last_step`` steps, and what is no line, in one move; returns the lines that stay.

    Without any the file goes.

    Raises:
        StorageError: The file cannot be read or written.
    """
    kept = [line for line in read_log(path) if line["step"] <= last_step]
    if not kept:
        _remove(path)
        return kept
    rows = "".join(json.dumps(finite(line), allow_nan=False, ensure_ascii=False) + "\n" for line in kept)
    write_atomically(path, lambda temporary: temporary.write_text(rows, encoding="utf-8"))
    return kept


def finite(value: Any) -> Any:
    """A copy of plain values that every reader of JSON takes: NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_words(name: str, value: float) -> str:
    if name.startswith("top") and name[3:].isdecimal():
        return f"top-{name[3:]} {100 * value:.2f} %"
    return f"{name} {value:.4g}"


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror or error}).") from None


def _check_writable(out_dir: Path) -> None:
    """Refuse before the first step what would fail at the first line; nothing is made."""
    existing = next(path for path in (out_dir, *out_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise StorageError(f"{out_dir} cannot hold the log: {existing} is no folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"{out_dir} cannot hold the log: nothing can be written in {existing}.")


def _event_writers(out_dir: Path, first_step: int) -> Callable[[], Any]:
    """What makes TensorBoard's writer; events of steps that will be done again count no more."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "TensorBoard was asked for and is not installed: pip install 'mixerzoo[train]', or leave it out."
        ) from None
    return partial(SummaryWriter, str(out_dir / "tensorboard"), purge_step=first_step + 1)
