"""The ``--device`` option."""

from __future__ import annotations

import torch

from mixerzoo.distributed import in_a_job
from mixerzoo.errors import ConfigError


def usable_device(name: str) -> torch.device:
    """Return the device if tensors can be put on it.

    Raises:
        ConfigError: It does not exist on this machine, or is no device at all.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and in_a_job() and torch.cuda.is_available():
            return device  # the job gives each process a card of its own, and says if there are too few
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used ({reason}): try --device cpu.") from None
    return device
