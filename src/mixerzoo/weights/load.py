"""From a description of weights to a model that holds them, without ever initialising what is loaded.

The model is built on the meta device, the file's tensors are mapped into memory, adapted to the model's head and
stem, and assigned. Pages are read when the forward pass first touches them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import PretrainedCfg
from torch import Tensor

from mixerzoo.config import MixerConfig
from mixerzoo.errors import DamagedFileError, HubError, WeightsError
from mixerzoo.model import Mixer
from mixerzoo.weights import hub
from mixerzoo.zoo import DEFAULT_TAGS

WEIGHTS_FILE = "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".tar")


def locate_weights(source: PretrainedCfg, name: str, cache_dir: str | Path | None = None) -> Path:
    """Return the local file with the weights that ``source`` describes, downloading it if need be.

    Args:
        source: ``file`` (a file or a folder), else ``hf_hub_id`` (with an optional ``@revision``).
        name: What to call the weights in messages.
        cache_dir: The Hub cache; None for huggingface_hub's own.

    Raises:
        WeightsError: There is no such file, or its format is not loaded.
        HubError: The download failed.
    """
    if source.file:
        path = Path(source.file)
        return _in_folder(path) if path.is_dir() else path
    if source.hf_hub_id:
        return hub.fetch(source.hf_hub_id, WEIGHTS_FILE, cache_dir=cache_dir)
    if source.url:
        raise WeightsError(
            f"{name} was released as a Flax file only ({source.url}), and this version of mixerzoo cannot convert "
            "such files yet: choose a tag with a Hub repository (mixerzoo info NAME shows the sources)."
        )
    variant = name.partition(".")[0]
    if variant in DEFAULT_TAGS:
        raise WeightsError(
            f"The configuration names no source of weights for {name}: give file or hf_hub_id, or leave pretrained_cfg "
            "out for the released weights."
        )
    raise WeightsError(
        f"No weights were ever released for {variant}; variants that have some: {', '.join(DEFAULT_TAGS)}."
    )


def _in_folder(folder: Path) -> Path:
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    others = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    if others:
        raise WeightsError(f"{folder} has {others[0]} but no {WEIGHTS_FILE}. {_PICKLE_ADVICE}")
    raise WeightsError(f"{folder} has no {WEIGHTS_FILE}.")


_PICKLE_ADVICE = (
    "Pickled checkpoints can run code and are not loaded: open it with torch.load(path, weights_only=True) and store "
    "the state dict with safetensors.torch.save_file."
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file into memory.

    Raises:
        DamagedFileError: It is no whole safetensors file.
        WeightsError: It is missing, or of another format (a pickle, for instance).
    """
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.")
    if path.suffix.lower() == ".npz":
        raise WeightsError(f"{path}: this version of mixerzoo cannot convert Flax files yet; give a safetensors file.")
    if path.suffix.lower() in _PICKLED:
        raise WeightsError(f"{path} is not a safetensors file. {_PICKLE_ADVICE}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is not a whole safetensors file ({error}): fetch or write it again.") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from None


def load_weights(model: Mixer, path: Path, *, stored: MixerConfig, dtype: torch.dtype = torch.float32) -> None:
    """Assign the weights in ``path`` to ``model``, strictly.

    The head is replaced by a freshly initialised one where the model has another number of classes than the file,
    and the stem is adapted to another number of input channels by timm's rule (sum for one channel; otherwise
    repeated and rescaled so that activations keep their size). Everything else must fit.

    Args:
        model: Built on the meta device (or anywhere; its parameters are replaced).
        path: A safetensors file with timm's parameter names.
        stored: Sizes of the weights in the file.
        dtype: Type of the resulting parameters; equal types are not copied.

    Raises:
        WeightsError: A missing, unexpected or misshapen tensor; the message names it.
    """
    tensors = read_state_dict(path)
    _check_names(tensors, model, stored, path)
    num_classes, same_head = model.num_classes, model.num_classes == stored.num_classes
    if not same_head:
        model.reset_classifier(0)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    if model.in_chans != stored.in_chans:
        kernel, patch = tensors["stem.proj.weight"], stored.patch_size
        _check_shape("stem.proj.weight", kernel, (stored.embed_dim, stored.in_chans, patch, patch), path)
        tensors["stem.proj.weight"] = _adapt_stem(kernel, model.in_chans)
    for name, parameter in model.state_dict().items():
        _check_shape(name, tensors[name], tuple(parameter.shape), path)
        tensors[name] = tensors[name].to(dtype)
    model.load_state_dict(tensors, strict=True, assign=True)
    if not same_head:
        model.reset_classifier(num_classes)  # where the other parameters are now


def load_from(
    model: Mixer,
    source: PretrainedCfg,
    *,
    name: str,
    stored: MixerConfig,
    cache_dir: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Locate what ``source`` describes and load it; a damaged download is removed from the cache.

    Raises:
        WeightsError: See :func:`locate_weights` and :func:`load_weights`.
    """
    asked = model.config
    if (asked.grid_size, asked.tokens_mlp_dim) != (stored.grid_size, stored.tokens_mlp_dim):
        raise WeightsError(
            f"The weights of {name} are for {stored.grid_size[0]} x {stored.grid_size[1]} patches and a token-mixing "
            f"width of {stored.tokens_mlp_dim}; the model asked for has {asked.grid_size[0]} x {asked.grid_size[1]} "
            f"and {asked.tokens_mlp_dim}. This version of mixerzoo cannot carry weights to another resolution yet: "
            "leave img_size and tokens_mlp_dim at the weights' own."
        )
    path = locate_weights(source, name, cache_dir)
    try:
        load_weights(model, path, stored=stored, dtype=dtype)
    except DamagedFileError as error:
        if source.file or not source.hf_hub_id:
            raise
        hub.discard(path)
        raise HubError(
            f"{WEIGHTS_FILE} of the Hub repository {source.hf_hub_id} is damaged and was removed from the cache: "
            f"try again. ({error})"
        ) from None


def _check_names(tensors: dict[str, Tensor], model: Mixer, stored: MixerConfig, path: Path) -> None:
    expected = set(model.state_dict()) - {"head.weight", "head.bias"}
    if stored.num_classes:
        expected |= {"head.weight", "head.bias"}
    missing, unexpected = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or unexpected:
        problems = []
        if missing:
            problems.append(f"lacks {_first(missing)}")
        if unexpected:
            problems.append(f"has unexpected {_first(unexpected)}")
        raise WeightsError(
            f"{path} does not hold the weights of this model: it {' and '.join(problems)}. Expected timm's parameter "
            f"names for {len(model.blocks)} layers."
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise WeightsError(f"{path}: {name} holds {tensor.dtype} values; weights must be floating-point.")


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], path: Path) -> None:
    if tuple(tensor.shape) != expected:
        raise WeightsError(f"{path}: {name} has shape {tuple(tensor.shape)}, the model needs {expected}.")


def _adapt_stem(kernel: Tensor, in_chans: int) -> Tensor:
    """timm's ``adapt_input_conv``, from any number of channels: one is the sum, more are repeats, rescaled."""
    kernel, stored = kernel.float(), kernel.shape[1]
    if in_chans == 1:
        return kernel.sum(dim=1, keepdim=True)
    repeats = -(-in_chans // stored)
    return kernel.repeat(1, repeats, 1, 1)[:, :in_chans] * (stored / in_chans)


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
