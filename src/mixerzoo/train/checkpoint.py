"""Saving and resuming a training run. A kill at any moment leaves either the old checkpoint or the new one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from mixerzoo.errors import TrainingError
from mixerzoo.weights.atomic import write_atomically

FORMAT = 2
FILE_NAME = "checkpoint.pt"


def save_checkpoint(out_dir: Path, state: dict[str, Any]) -> None:
    """Write the run's state to ``out_dir/checkpoint.pt``."""
    write_atomically(out_dir / FILE_NAME, lambda path: torch.save({"format": FORMAT, **state}, path))


def load_checkpoint(out_dir: Path) -> dict[str, Any] | None:
    """Read the run's state back; None if there is none. Nothing but tensors and plain values is unpickled.

    Raises:
        TrainingError: The file is damaged or of another format.
    """
    path = out_dir / FILE_NAME
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{path} cannot be read ({type(error).__name__}): delete it, or choose another --out, to start afresh."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path} is not a training checkpoint of this version of mixerzoo: choose another --out.")
    return state


def check_same(what: str, was: dict[str, Any], now: dict[str, Any], out_dir: Path) -> None:
    """Raise TrainingError unless a run is resumed with the settings that it was started with."""
    changed = [f"{name} {was.get(name)!r} -> {value!r}" for name, value in now.items() if was.get(name) != value]
    if changed or was.keys() != now.keys():
        raise TrainingError(
            f"{out_dir} holds a run with another {what} ({', '.join(changed)}): choose another --out, or the same "
            "settings."
        )
