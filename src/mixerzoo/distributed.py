"""The processes of one job, as ``torchrun`` starts them; one process alone is a job of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mixerzoo.errors import ConfigError

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    """Where this process stands among those of the job.

    Attributes:
        rank: This process, from 0.
        size: Processes of the job.
        device: Where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's ``values`` (of one shape and type), on the CPU."""
        if self.size == 1:
            return values.detach().cpu()
        total = values.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.cpu()

    def gather(self, value: _T) -> list[_T]:
        """Every process's ``value`` in the order of ranks; small picklable values among the job's own processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()


def is_first_process() -> bool:
    """Whether this is the process of a job that speaks: the first one, or the only one."""
    return not in_a_job() or os.environ["RANK"] == "0"


def in_a_job() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_of_another_process(error: BaseException) -> bool:
    """Whether a message to or from another process of the job failed, and not this one's own work."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


@contextmanager
def job(device: str = "cpu", *, timeout_s: float = 1800.0) -> Iterator[World]:
    """Join the job that ``torchrun`` started, and leave it at the end; without ``torchrun`` a job of one.

    Args:
        device: ``"cpu"``, or ``"cuda"``: then each process takes the card of its local rank.
        timeout_s: How long a process waits for the others before it gives up, in seconds.

    Raises:
        ConfigError: There are fewer cards than local processes.
    """
    if not in_a_job():
        yield World(device=torch.device(device))
        return
    local = int(os.environ["LOCAL_RANK"])
    place = torch.device(device)
    if place.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started process {local} on a machine with {torch.cuda.device_count()} GPUs: lower "
                "--nproc-per-node, or use --device cpu."
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), place)
    except BaseException:
        if place.type == "cpu":  # NCCL would wait for the others, which wait for this one: torchrun ends them
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
