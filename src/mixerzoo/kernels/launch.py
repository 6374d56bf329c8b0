"""The description of one kernel launch, and of the card it is meant for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mixerzoo.kernels.precision import tf32_allowed

SHARED_MEMORY: Mapping[tuple[int, int], int] = {
    (8, 0): 166_912,
    (8, 6): 101_376,
    (8, 9): 101_376,
    (9, 0): 232_448,
    (10, 0): 232_448,
    (12, 0): 101_376,
}
"""Bytes of shared memory one block may use, by compute capability (CUDA C++ Programming Guide, technical specifications
per compute capability; one KiB of each multiprocessor's memory is the system's)."""


@dataclass(frozen=True)
class Card:
    """What the choice of tiles depends on.

    Attributes:
        capability: CUDA compute capability.
        multiprocessors: Number of streaming multiprocessors.
        shared_memory: Bytes of shared memory one block may use.
    """

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int

    @property
    def warp_group_mma(self) -> bool:
        """Whether products read their operands from shared memory (Hopper and data-centre Blackwell)."""
        return self.capability[0] in (9, 10)


INTERPRETER = Card((9, 0), 2, SHARED_MEMORY[9, 0])
"""What the interpreter stands for: a Hopper card with two multiprocessors, so that persistent loops do loop."""


def card_of(device: torch.device) -> Card:
    """The card behind a CUDA device; the interpreter's for any other."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    return Card(
        (properties.major, properties.minor), properties.multi_processor_count, properties.shared_memory_per_block_optin
    )


@dataclass(frozen=True)
class Launch:
    """One kernel with everything it is started with.

    Attributes:
        kernel: A ``triton.jit`` function.
        grid: Number of programs in each direction.
        arguments: Tensors and run-time integers, by parameter name. Tensors on the meta device describe a launch that
            is only compiled.
        constants: Compile-time constants, by parameter name.
        num_warps: Warps a program.
        num_stages: Depth of software pipelining where a loop does not say.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Tensor | float | None]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 2

    def __call__(self) -> None:
        """Run it on the arguments' device; nothing runs for an empty grid."""
        if not all(self.grid):
            return
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if triton.knobs.runtime.interpret:
            self.kernel[self.grid](**self.arguments, **self.constants, **options)
            return
        device = next(value.device for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device(device):  # Triton launches on the current device, wherever the tensors are
            self.kernel[self.grid](**self.arguments, **self.constants, **options, enable_fp_fusion=True)


def dot_precision(dtype: torch.dtype) -> str:
    """How float32 products run: TF32 only where the user allowed it."""
    return "ieee" if dtype == torch.float32 and not tf32_allowed() else "tf32"
