"""Every part of the GPU suite, and what happens where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mixerzoo.bench.gpu.request import Request
from mixerzoo.bench.gpu.suite import OPERATION_PARTS, run_suite
from mixerzoo.bench.race.gpu_parts import race_part
from mixerzoo.errors import ConfigError
from mixerzoo.ops.backends.triton import interpreted


def run_part(request: Request, say: Callable[[str], object]) -> bool:
    """Run a part; without a CUDA device say why it is skipped, which is no failure.

    Args:
        request: What to run.
        say: Receives each line of progress and the summary.

    Returns:
        Whether nothing failed.

    Raises:
        ConfigError: The request cannot be met.
    """
    if not request.minutes > 0:
        raise ConfigError(f"--minutes {request.minutes} must be more than 0.")
    if request.part in OPERATION_PARTS:
        if interpreted() or torch.cuda.is_available():
            return run_suite(request, say)
        say(
            f"skipped: there is no CUDA device here; run --part {request.part} on a machine that has one, or rehearse "
            "it on the CPU with TRITON_INTERPRET=1."
        )
        return True
    if request.record:
        raise ConfigError(f"The races of --part {request.part} enter no card into the table: leave --record out.")
    if torch.cuda.is_available():
        return race_part(request, say)
    say(f"skipped: there is no CUDA device here; run --part {request.part} on a machine that has one.")
    return True
