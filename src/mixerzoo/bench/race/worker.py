"""A contender's worker: gets it ready once, then times a round whenever it is asked."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixerzoo.bench.gpu.checks import relative_error
from mixerzoo.bench.gpu.timing import copies_for
from mixerzoo.bench.race.contenders import contenders_of
from mixerzoo.bench.race.models import random_images, read_reference
from mixerzoo.bench.race.terms import Built, Contender, Task
from mixerzoo.bench.race.timing import Step, time_round
from mixerzoo.bench.race.training import TrainingStep
from mixerzoo.bench.workers.serving import Handle, guarded, serve_standard_input

_BATCHES = 3  # of images that take turns on the CPU


class Seat:
    """Where one contender sits; a request says ``build`` once, then ``round`` as often as wanted."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._task: Task | None = None
        self._training = False

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says."""
        if request["do"] == "round":
            return self._round(request["seconds"])
        self._training = request["training"]
        self._task = task = task_of(request)
        return self._build(contenders_of(request["module"])[request["contender"]], task)

    def _build(self, contender: Contender, task: Task) -> dict[str, Any]:
        torch.set_num_threads(task.threads)
        start = time.perf_counter()
        built = _training_step(contender, task) if self._training else contender.build(task)
        batches = [random_images(task.model, task.batch_size, seed).to(task.device) for seed in range(_copies(task))]
        self._steps = [_step(built, images) for images in batches]
        with self._mode():
            first = torch.as_tensor(built.call(batches[0])).float().cpu().clone()  # some reuse their outputs
            ready = time.perf_counter() - start
            _forget_peak(task)  # compilers try things out
            for step in self._steps:
                step()
            last = torch.as_tensor(built.call(batches[0])).float().cpu()  # after other images: nothing may be left
        reference = read_reference(task.folder)
        error = relative_error(first, reference)
        if not self._training:
            error = max(error, relative_error(last, reference))
        return {"build_seconds": ready, "error": error, "says": built.says, "memory": _peak(task)}

    def _round(self, seconds: float) -> dict[str, Any]:
        assert self._task is not None
        latency = self._task.batch_size == 1
        with self._mode():
            calls, each = time_round(self._steps, self._task.device, seconds, each=latency)
        return {"calls": calls, "seconds": each}

    def _mode(self) -> AbstractContextManager[object]:
        return nullcontext() if self._training else torch.inference_mode()


def task_of(request: dict[str, Any]) -> Task:
    """The task that a request names."""
    return Task(**request["task"] | {"folder": Path(request["task"]["folder"])})


def _training_step(contender: Contender, task: Task) -> Built:
    assert contender.trainable is not None
    return Built(TrainingStep(contender.trainable(task), task), "torch.compile, autocast, fused AdamW")


def _step(built: Built, images: Tensor) -> Step:
    return lambda: built.call(images)


def _copies(task: Task) -> int:
    """Batches that take turns, on a card so many that its cache cannot hold them."""
    if task.device == "cpu":
        return _BATCHES
    return copies_for(random_images(task.model, 1, 0).nbytes * task.batch_size)


def _forget_peak(task: Task) -> None:
    if task.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(task: Task) -> int | None:
    """Bytes that the card's memory held at most, weights and all images that take turns included."""
    return torch.cuda.max_memory_allocated() if task.device == "cuda" else None


def _handler() -> Handle:
    return guarded(Seat().answer)


if __name__ == "__main__":
    serve_standard_input(_handler)
