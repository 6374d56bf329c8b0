"""An optimized model in a folder: packed tensors, what was asked for, and what ``torch.compile`` produced.

    engine.json            format, versions, request, program
    tensors.safetensors    what the program packed
    compiled.pt2           machine code with its own copy of the weights, where the program compiles ahead of time

The first two are data. The third is machine code and is run only when the caller says that the folder is theirs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixerzoo.config import MixerConfig, image_size
from mixerzoo.engine.program import Request, make_request
from mixerzoo.errors import ConfigError, EngineError

FORMAT = 1
_JSON, _TENSORS, _COMPILED = "engine.json", "tensors.safetensors", "compiled.pt2"


@dataclasses.dataclass(frozen=True)
class Artefact:
    """What a folder holds.

    Attributes:
        program: Name of the program that packed the tensors.
        request: What it was asked for.
        tensors: What it packed.
        passed_over: Why no faster program was taken.
        pretrained_cfg: The model's preprocessing and source of weights.
        pretrained_head: Whether its head came with those weights.
        code: File of compiled code, if there is one.
    """

    program: str
    request: Request
    tensors: dict[str, Tensor]
    passed_over: dict[str, str]
    pretrained_cfg: dict[str, Any]
    pretrained_head: bool
    code: Path | None = None


def write(artefact: Artefact, folder: Path) -> None:
    """Write a new folder, completely or not at all.

    Raises:
        EngineError: There is something of that name already, or it cannot be written.
    """
    if os.path.lexists(folder):
        raise EngineError(f"{folder} exists already: give the name of a folder that does not, or remove it.")
    request = artefact.request
    described = {
        "format": FORMAT,
        "made_for": _machine(),
        "program": artefact.program,
        "passed_over": artefact.passed_over,
        "config": dataclasses.asdict(request.config),
        "device": str(request.device),
        "dtype": str(request.dtype).removeprefix("torch."),
        "quantize": request.quantize,
        "compile": request.compile,
        "max_batch_size": request.max_batch_size,
        "pretrained_cfg": artefact.pretrained_cfg,
        "pretrained_head": artefact.pretrained_head,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".mixerzoo-") as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            (new / _JSON).write_text(json.dumps(described, indent=2) + "\n")
            save_file({name: tensor.cpu().contiguous() for name, tensor in artefact.tensors.items()}, new / _TENSORS)
            if artefact.code is not None:
                shutil.copyfile(artefact.code, new / _COMPILED)
            new.rename(folder)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"The optimized model cannot be written to {folder}: {error}.") from error


def read(folder: Path, trusted: bool) -> Artefact:
    """Read a folder that :func:`write` wrote.

    Args:
        folder: Where it is.
        trusted: Also name its compiled code.

    Raises:
        EngineError: The folder is missing, damaged, or of another format.
    """
    try:
        described = json.loads((folder / _JSON).read_text())
        if described["format"] != FORMAT:
            raise EngineError(
                f"{folder} has format {described['format']!r}, and this version of mixerzoo reads {FORMAT}: "
                "optimize the model again."
            )
        request = _request(described)
        program, passed_over = str(described["program"]), dict(described["passed_over"])
        pretrained_cfg, pretrained_head = dict(described["pretrained_cfg"]), bool(described["pretrained_head"])
        tensors = load_file(folder / _TENSORS, device=str(request.device))
    except EngineError:
        raise
    except FileNotFoundError as error:
        raise EngineError(
            f"{folder} is no optimized model ({error.filename} is missing): write one with save()."
        ) from None
    except ConfigError as error:
        raise EngineError(f"{folder} cannot be used here: {error}") from error
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise EngineError(f"{folder} is damaged ({error}): optimize the model again.") from error
    usable = trusted and described.get("made_for") == _machine() and (folder / _COMPILED).exists()
    code = folder / _COMPILED if usable else None
    return Artefact(program, request, tensors, passed_over, pretrained_cfg, pretrained_head, code)


def _machine() -> dict[str, str]:
    """What compiled code depends on: elsewhere it is compiled again."""
    return {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}


def _request(described: dict[str, Any]) -> Request:
    config = {**described["config"], "img_size": image_size(described["config"]["img_size"])}
    dtype = getattr(torch, described["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{described['dtype']!r} is no dtype")
    return make_request(
        MixerConfig(**config),
        described["device"],
        dtype,
        described["quantize"],
        described["compile"],
        described["max_batch_size"],
    )
