"""Tensors from and to files: safetensors by memory map, Flax archives by conversion, pickles only on request."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixerzoo.atomic import write_atomically
from mixerzoo.errors import DamagedFileError, StorageError, WeightsError
from mixerzoo.weights.google import read_npz
from mixerzoo.weights.npz import MAX_EXPANSION, all_finite

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".tar")
PICKLE_ADVICE = (
    "Pickled checkpoints can run code and are not loaded: `mixerzoo convert` reads the tensors of one without running "
    "any."
)
_ANCHOR = "stem.proj.weight"
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")  # timm's own order of preference


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights: a safetensors file is mapped into memory, a Flax archive (``.npz``) converted.

    A prefix that all names share (``model.``, ``module.vision_encoder.`` ...) is taken off.

    Raises:
        DamagedFileError: It is no whole file of its format.
        WeightsError: It is missing, of another format (a pickle, for instance), or no Mixer's.
    """
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.")
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    if path.suffix.lower() in PICKLED:
        raise WeightsError(f"{path} is not a safetensors file. {PICKLE_ADVICE}")
    try:
        return without_prefix(load_file(path))
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is not a whole safetensors file ({error}): fetch or write it again.") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a pickled checkpoint with torch's restricted unpickler, which runs no code.

    Of a training checkpoint the averaged weights are taken where there are some, as timm does.

    Raises:
        DamagedFileError: It is no whole file of torch's.
        WeightsError: It is missing, holds objects that only code could build, or no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols that torch does not expect
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} holds more than tensors, or is no checkpoint of torch's; objects that only code could build are "
            "refused. Where you trust it, store its state dict with safetensors.torch.save_file."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFileError(f"{path} is not a whole checkpoint of torch's ({reason}).") from None
    if isinstance(content, Mapping):
        content = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no state dict (parameter names and tensors), alone or as 'state_dict'.")
    return without_prefix(_plain({str(name): tensor for name, tensor in content.items()}, path))


def _plain(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Dense tensors, each in memory of its own; those that are not are copied."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise WeightsError(f"{path}: {name} is no dense tensor with values ({tensor.layout}, on {tensor.device}).")
    if sum(tensor.nbytes for tensor in tensors.values()) > MAX_EXPANSION * path.stat().st_size:
        raise WeightsError(f"{path} would unpack to more than {MAX_EXPANSION} times its size; weights never do.")
    plain: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in taken
        plain[name] = tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)
        taken.add(storage.data_ptr())
    return plain


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put before every name of a Mixer: ``model.``, ``module.``, ``vision_encoder.`` ..."""
    prefixes = [name.removesuffix(_ANCHOR) for name in tensors if name.endswith(f".{_ANCHOR}")]
    if _ANCHOR in tensors or len(prefixes) != 1:
        return tensors
    stripped = {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items()}
    return stripped if len(stripped) == len(tensors) else tensors  # a name that would be there twice stays as it is


def require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Read every value once, and raise WeightsError naming the first parameter that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise WeightsError(f"{path}: {name} holds NaN or infinite values.")


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file in one move.

    Raises:
        StorageError: It cannot be stored (a full disk, for instance).
    """
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
    except SafetensorError as error:
        raise StorageError(f"{path} cannot be stored ({error}).") from None
