"""How a run uses its machines: nothing here is meant to change the result beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mixerzoo.checks import check_integer
from mixerzoo.errors import ConfigError


@dataclass(frozen=True)
class RunOptions:
    """How a run uses its machines.

    Attributes:
        out_dir: Receives checkpoints, logs and, at the end, the weights. Every machine of a job must see it.
        device: Where to train: ``"cpu"`` or ``"cuda"``.
        amp: bfloat16 autocast.
        compile: Train through ``torch.compile``.
        backend: How the Mixer layers are computed, see :meth:`mixerzoo.Mixer.set_backend`.
        shard: Split parameters, gradients and optimiser state over the processes (FSDP2) instead of copying them (DDP).
        accumulate: Micro-batches that each process computes one after the other for one step.
        grad_checkpointing: Keep no activations inside layers, and compute them again in the backward pass.
        workers: Processes that read and augment images for each training process; 0 reads in the process itself.
        checkpoint_every: Steps between checkpoints; 0 saves at the end of every epoch.
        keep: Checkpoints that are kept, the newest.
        evaluate_every: Epochs between evaluations; the last state is always evaluated.
        resume: Go on from ``out_dir``'s newest checkpoint if there is one.
        progress: Show a progress bar (on a terminal) and a line for every evaluation.
        tensorboard: Write TensorBoard's event files into ``out_dir/tensorboard``.
        weights_dtype: Type of the tensors in ``model.safetensors``.

    Raises:
        ConfigError: A number or device that cannot be used.
    """

    out_dir: Path
    device: str = "cpu"
    amp: bool = True
    compile: bool = False
    backend: str | None = None
    shard: bool = False
    accumulate: int = 1
    grad_checkpointing: bool = False
    workers: int = 2
    checkpoint_every: int = 0
    keep: int = 2
    evaluate_every: int = 1
    resume: bool = False
    progress: bool = True
    tensorboard: bool = False
    weights_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Validate every number once."""
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise ConfigError(f"device={self.device!r}: training runs on 'cpu' or 'cuda'.")
        for name in ("accumulate", "keep", "evaluate_every"):
            check_integer(name, getattr(self, name), minimum=1)
        for name in ("workers", "checkpoint_every"):
            check_integer(name, getattr(self, name), minimum=0)
