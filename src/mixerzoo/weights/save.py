"""Writing a model as a folder that ``local-dir:`` names load, here and in timm (after ``import mixerzoo``)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mixerzoo.model import Mixer
from mixerzoo.weights.load import WEIGHTS_FILE

_DESCRIPTION = ("interpolation", "crop_pct", "crop_mode", "mean", "std")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_folder(
    model: Mixer,
    folder: Path,
    *,
    variant: str,
    preprocessing: dict[str, Any],
    label_names: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write ``folder/config.json`` and ``folder/model.safetensors``, each in one move.

    Args:
        model: The model; its configuration is stored field by field.
        folder: Created if need be.
        variant: The architecture's name in the zoo.
        preprocessing: timm's data config (``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``).
        label_names: Names of the classes, in the order of the outputs.
        dtype: Type of the stored tensors.
    """
    config: dict[str, Any] = {
        "architecture": variant,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": dataclasses.asdict(model.config),
        "pretrained_cfg": {
            "input_size": [model.in_chans, *model.config.image_hw],
            "fixed_input_size": True,
            "num_classes": model.num_classes,
            "first_conv": "stem.proj",
            "classifier": "head",
        }
        | {name: preprocessing[name] for name in _DESCRIPTION if name in preprocessing},
    }
    if label_names is not None:
        config["label_names"] = list(label_names)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path))
    write_atomically(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
