"""From a description of weights to a model that holds them, without ever initialising what is loaded.

The model is built on the meta device, the file's tensors are mapped into memory, adapted to the model's head and
stem, and assigned. Pages are read when the forward pass first touches them.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from timm.models import PretrainedCfg
from torch import Tensor

from mixerzoo.config import MixerConfig
from mixerzoo.errors import DamagedFileError, HubError, HubUnreachableError, WeightsError, listed
from mixerzoo.model import Mixer
from mixerzoo.weights import hub
from mixerzoo.weights.files import PICKLE_ADVICE, PICKLED, WEIGHTS_FILE, read_state_dict
from mixerzoo.weights.official import official_weights
from mixerzoo.zoo import DEFAULT_TAGS


def locate_weights(cfg: PretrainedCfg, name: str, *, stored: MixerConfig, cache_dir: str | Path | None = None) -> Path:
    """Return the local file with the weights that ``cfg`` describes, downloading and converting it if need be.

    Args:
        cfg: ``file`` (a file or a folder), else ``hf_hub_id`` (with an optional ``@revision``), else ``url`` (an
            official Flax file), which also steps in where the Hub does not have the weights or cannot be reached.
        name: What to call the weights in messages.
        stored: The sizes that the weights are known to have.
        cache_dir: The Hub cache; None for huggingface_hub's own.

    Raises:
        WeightsError: There is no such file, or its format is not loaded.
        HubError: The download failed.
    """
    if cfg.file:
        path = Path(cfg.file)
        return _in_folder(path) if path.is_dir() else path
    if cfg.hf_hub_id:
        try:
            return hub.fetch(cfg.hf_hub_id, WEIGHTS_FILE, cache_dir=cache_dir)
        except HubError as error:
            if not cfg.url:
                raise
            return _official_instead(cfg.url, name, error, stored, cache_dir)
    if cfg.url:
        return official_weights(cfg.url, name, stored=stored, cache_dir=cache_dir)
    variant = name.partition(".")[0]
    if variant in DEFAULT_TAGS:
        raise WeightsError(
            f"The configuration names no source of weights for {name}: give file or hf_hub_id, or leave pretrained_cfg "
            "out for the released weights."
        )
    raise WeightsError(
        f"No weights were ever released for {variant}; variants that have some: {', '.join(DEFAULT_TAGS)}."
    )


def _official_instead(url: str, name: str, error: HubError, stored: MixerConfig, cache_dir: str | Path | None) -> Path:
    """The official Flax file where the Hub's copy cannot be had; where neither can, both reasons."""
    try:
        path = official_weights(url, name, stored=stored, cache_dir=cache_dir)
    except HubUnreachableError:
        raise type(error)(f"{error} The original, {url}, cannot be had either.") from None
    except HubError as second:
        raise type(error)(f"{error} Nor can the original be had: {second}") from None
    reason = "cannot be reached" if isinstance(error, HubUnreachableError) else "does not have it"
    warnings.warn(f"{name}: using Google's Flax file, because the Hub {reason}.", UserWarning, stacklevel=2)
    return path


def _in_folder(folder: Path) -> Path:
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    others = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if others:
        raise WeightsError(f"{folder} has {others[0]} but no {WEIGHTS_FILE}. {PICKLE_ADVICE}")
    raise WeightsError(f"{folder} has no {WEIGHTS_FILE}.")


def load_weights(
    model: Mixer,
    path: Path,
    *,
    stored: MixerConfig,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Assign the weights in ``path`` to ``model``, strictly.

    The head is replaced by a freshly initialised one where the model has another number of classes than the file,
    and the stem is adapted to another number of input channels by timm's rule (sum for one channel; otherwise
    repeated and rescaled so that activations keep their size). Everything else must fit;
    :meth:`mixerzoo.Mixer.set_input_size` carries the loaded model to another image size.

    Args:
        model: Built on the meta device (or anywhere; its parameters are replaced).
        path: A safetensors file with timm's parameter names, or a Flax archive.
        stored: Sizes of the weights in the file.
        dtype: Type of the resulting parameters; equal types are not copied.

    Raises:
        WeightsError: A missing, unexpected or misshapen tensor; the message names it.
    """
    assign_weights(model, read_state_dict(path), path, stored=stored, dtype=dtype)


def assign_weights(
    model: Mixer,
    tensors: dict[str, Tensor],
    path: Path,
    *,
    stored: MixerConfig,
    dtype: torch.dtype = torch.float32,
) -> None:
    """:func:`load_weights` for tensors that were read already; ``path`` is what to call them."""
    tensors = dict(tensors)
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
    model.pretrained_head = same_head
    if not same_head:
        model.reset_classifier(num_classes)  # where the other parameters are now


def load_from(
    model: Mixer,
    cfg: PretrainedCfg,
    *,
    name: str,
    stored: MixerConfig,
    cache_dir: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Locate what ``cfg`` describes and load it; a damaged download is removed from the cache.

    Raises:
        WeightsError: See :func:`locate_weights` and :func:`load_weights`.
    """
    path = locate_weights(cfg, name, stored=stored, cache_dir=cache_dir)
    try:
        load_weights(model, path, stored=stored, dtype=dtype)
    except DamagedFileError as error:
        if cfg.file:
            raise
        hub.discard(path)
        raise HubError(f"The copy of {name} in the cache is damaged and was removed: try again. ({error})") from None


def _check_names(tensors: dict[str, Tensor], model: Mixer, stored: MixerConfig, path: Path) -> None:
    expected = set(model.state_dict()) - {"head.weight", "head.bias"}
    if stored.num_classes:
        expected |= {"head.weight", "head.bias"}
    missing, unexpected = expected - set(tensors), set(tensors) - expected
    if missing or unexpected:
        problems = []
        if missing:
            problems.append(f"lacks {listed(missing)}")
        if unexpected:
            problems.append(f"has unexpected {listed(unexpected)}")
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
    kernel, stored = kernel.to(torch.promote_types(kernel.dtype, torch.float32)), kernel.shape[1]
    if in_chans == 1:
        return kernel.sum(dim=1, keepdim=True)
    repeats = -(-in_chans // stored)
    return kernel.repeat(1, repeats, 1, 1)[:, :in_chans] * (stored / in_chans)
