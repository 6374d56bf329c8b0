"""Creating models and their preprocessing by name: thin over timm's registry, builder and transforms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn
from torchvision.transforms import Compose

from mixerzoo import timm_registry
from mixerzoo.checks import check_choice
from mixerzoo.config import Gelu, GlobalPool, MixerConfig, image_size
from mixerzoo.data.transforms import Augmentation, eval_transform, train_transform
from mixerzoo.errors import ConfigError
from mixerzoo.names import Resolved, check_cfg_keys, get_pretrained_cfg, resolve
from mixerzoo.resize import Resize, resized_config
from mixerzoo.zoo import VARIANTS

WeightSource: TypeAlias = Literal["hub", "npz"]


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    resize: Resize | None = None,
    source: WeightSource | None = None,
    act: Gelu | None = None,
    tokens_mlp_dim: int | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    drop_path_rescale: bool | None = None,
    head_bias: float | None = None,
    global_pool: GlobalPool | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Create a Mixer by name, with or without weights. Loading weights spends no time on initialisation.

    Args:
        name: ``"mixer_b16"``, ``"mixer_b16.goog_in1k"``, ``"hf-hub:organisation/name[@revision]"`` or
            ``"local-dir:path"``. timm's names (``"mixer_b16_224.goog_in21k"``) are understood.
        pretrained: Load the tag's weights; without a tag, the variant's default tag.
        num_classes: Outputs of the head; another number than the weights' gives a new head of zeros, 0 none.
        in_chans: Channels of the input; the stem's weights are adapted by timm's rule.
        img_size: Height and width of the input in pixels, or one integer.
        resize: How weights are carried to another image size. ``"tile"`` is the paper's scheme (appendix C) for whole
            multiples of the patch grid: each tile of the image gets its own copy of the token-mixing weights, whose
            hidden width grows as often. ``"interpolate"`` resamples the weights to any grid and keeps the width. None
            tiles where the sides are whole multiples and interpolates elsewhere; without weights the widths stay the
            variant's unless ``"tile"`` is asked for.
        source: Where a tag's weights come from: ``"hub"`` for the Hugging Face Hub, ``"npz"`` for Google's Flax file
            (converted once and kept). None takes the Hub's where there are some, and the Flax file where there are
            none or the Hub cannot be reached. Of no effect without ``pretrained=True``.
        act: GELU flavour; None takes the weights' own, ``"tanh"`` for Google's and ``"erf"`` for MIIL's.
        tokens_mlp_dim: Hidden width of the token-mixing MLP.
        drop_rate: Dropout probability before the head.
        drop_path_rate: Stochastic-depth probability of the last layer.
        drop_path_rescale: Whether surviving branches are scaled up by 1 / keep (timm) or not (the official code).
        head_bias: Bias that a head starts with where no weights are loaded into it.
        global_pool: ``"avg"``, or ``""`` to keep the tokens.
        features_only: Return a model that maps images to a list of feature maps (N, C, rows, columns).
        out_indices: Layers whose outputs ``features_only`` returns: indices, or the last n (3 by default).
        checkpoint_path: Load this safetensors file (mapped into memory: do not overwrite or truncate it in place while
            the model lives) or Flax archive (``.npz``) instead of the tag's weights. It must fit the model exactly;
            ``pretrained_cfg_overlay={"file": path}`` adapts it as the tag's weights are adapted.
        cache_dir: Cache of downloaded files; None for huggingface_hub's own (``HF_HOME``).
        pretrained_cfg: A tag, or a timm configuration that replaces the registered one.
        pretrained_cfg_overlay: Single entries to replace in the configuration, for instance ``{"file": path}``.
        device: Where the parameters are.
        dtype: Type of the parameters; None for float32 with weights, torch's default without.

    Returns:
        A :class:`mixerzoo.Mixer` in training mode, as timm's are (call ``.eval()`` to predict), or timm's feature
        wrapper around one.

    Raises:
        ModelNameError: The name, tag or source does not exist; near misses are listed.
        ConfigError: A size or flavour that cannot be used.
        WeightsError: The weights are absent, damaged or do not fit.
        HubError: A download failed; within ten seconds if the server cannot be reached.
    """
    if out_indices is not None and not features_only:
        raise ConfigError("out_indices is for features_only=True.")
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"dtype={dtype} must be a floating-point type.")
    resolved = resolve(name, pretrained_cfg=pretrained_cfg, cache_dir=cache_dir)
    overlay = dict(pretrained_cfg_overlay or {})
    check_cfg_keys(overlay, "pretrained_cfg_overlay")
    chosen: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "img_size": img_size,
        "act": act,
        "tokens_mlp_dim": tokens_mlp_dim,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
        "drop_path_rescale": drop_path_rescale,
        "head_bias": head_bias,
        "global_pool": global_pool,
        "out_indices": out_indices if isinstance(out_indices, int | None) else tuple(out_indices),
        "features_only": features_only or None,
        "device": device,
        "dtype": dtype,
        "cache_dir": cache_dir,
        "checkpoint_path": checkpoint_path,
        "resize": resize,
    }
    arguments = {key: value for key, value in chosen.items() if value is not None}
    if source is not None:
        overlay = _only_from(source, resolved, overlay)
    if resolved.stored is not None:
        arguments = dataclasses.asdict(resolved.stored) | arguments
    stored = resolved.stored or VARIANTS[resolved.variant].config
    if pretrained and checkpoint_path is None and tokens_mlp_dim is not None:
        _check_width(tokens_mlp_dim, stored, img_size, resize)
    return timm_registry.build(
        resolved.variant,
        pretrained,
        pretrained_cfg=resolved.cfg,
        pretrained_cfg_overlay=overlay or None,
        stored=resolved.stored,
        **arguments,
    )


def _check_width(asked: int, stored: MixerConfig, img_size: Any, resize: Resize | None) -> None:
    """A width that was asked for must be the one that the weights have at the image size."""
    wanted = stored if img_size is None else dataclasses.replace(stored, img_size=image_size(img_size))
    width = resized_config(stored, wanted, resize).tokens_mlp_dim
    if asked != width:
        raise ConfigError(
            f"tokens_mlp_dim={asked}: the weights have a token-mixing width of {width} at this image size; leave "
            "tokens_mlp_dim out, or choose resize='interpolate', which keeps the original width."
        )


def _only_from(source: WeightSource, resolved: Resolved, overlay: dict[str, Any]) -> dict[str, Any]:
    """The overlay that leaves one source of weights."""
    check_choice("source", source, get_args(WeightSource))
    kept, dropped = ("hf_hub_id", "url") if source == "hub" else ("url", "hf_hub_id")
    if not overlay.get(kept, getattr(resolved.cfg, kept)):
        what = "Hub repository" if source == "hub" else "Flax file"
        raise ConfigError(f"source={source!r}: there is no {what} with these weights; leave source out.")
    return overlay | {dropped: None}


def data_config(model_or_name: nn.Module | str) -> dict[str, Any]:
    """timm's data config for a model (its actual image size and channels count) or a name.

    Returns:
        ``input_size`` (channels, height, width), ``interpolation``, ``mean``, ``std``, ``crop_pct``, ``crop_mode``.

    Raises:
        ModelNameError: There is no such name.
    """
    if isinstance(model_or_name, str):
        cfg = get_pretrained_cfg(model_or_name).to_dict()
    else:
        cfg = dict(getattr(model_or_name, "pretrained_cfg", None) or {"mean": (0.5,) * 3, "std": (0.5,) * 3})
        configs = (getattr(module, "config", None) for module in model_or_name.modules())
        sizes = next((config for config in configs if isinstance(config, MixerConfig)), None)
        if sizes is not None:
            cfg["input_size"] = (sizes.in_chans, *sizes.image_hw)
    config: dict[str, Any] = timm.data.resolve_data_config({}, pretrained_cfg=cfg)
    channels = config["input_size"][0]
    for name in ("mean", "std"):
        values = config[name]
        if len(values) != channels:  # another number of channels than the weights': use the average for each
            config[name] = (sum(values) / len(values),) * channels
    return config


def create_transform(model_or_name: nn.Module | str, is_training: bool = False) -> Compose:
    """The preprocessing that belongs to a model: PIL image -> float32 tensor (channels, height, width).

    Evaluation resizes the short side, crops the centre and normalises, as the weights were evaluated. Training crops
    a random area (5-100 %), flips and normalises (the official fine-tuning recipe).

    Args:
        model_or_name: A model (its actual image size and channels count) or a name.
        is_training: Augment.

    Raises:
        ModelNameError: There is no such name.
    """
    config = data_config(model_or_name)
    return train_transform(config, Augmentation()) if is_training else eval_transform(config)
