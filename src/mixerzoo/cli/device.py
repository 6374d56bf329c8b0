"""The ``--device`` option."""

from __future__ import annotations

import os

import torch

from mixerzoo.errors import ConfigError


def usable_device(name: str) -> torch.device:
    """Return the device if tensors can be put on it.

    Raises:
        ConfigError: It does not exist on this machine, or is no device at all.
    """
    try:
        device = torch.device(name)
        index = int(os.environ.get("LOCAL_RANK", 0)) if device.type == "cuda" and device.index is None else device.index
        torch.empty(1, device=torch.device(device.type, index))  # under torchrun, each process touches its own card
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used ({reason}): try --device cpu.") from None
    return device
