"""Creating models by name: thin over timm's registry and builder.

A name is ``variant``, ``variant.tag``, ``hf-hub:organisation/name[@revision]`` or ``local-dir:path``.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import ImageNetInfo
from timm.models import PretrainedCfg
from torch import nn
from torchvision.transforms import Compose

from mixerzoo import entrypoints
from mixerzoo.config import Gelu, GlobalPool, MixerConfig
from mixerzoo.data.transforms import Augmentation, eval_transform, train_transform
from mixerzoo.errors import ConfigError, ModelNameError, WeightsError, did_you_mean
from mixerzoo.model import Mixer
from mixerzoo.weights import hub
from mixerzoo.weights.hub_config import HubConfig, read_hub_config
from mixerzoo.zoo import DEFAULT_TAGS, MISLABEL_REASON, MISLABELLED, TIMM_VARIANTS, VARIANTS, WEIGHTS

_SOURCES = ("hf-hub", "local-dir")


@dataclasses.dataclass(frozen=True)
class _Resolved:
    """A name, taken apart.

    Attributes:
        variant: Our architecture.
        cfg: timm's description of the weights, their source included.
        stored: Sizes of the stored weights, where a ``config.json`` says them.
    """

    variant: str
    cfg: PretrainedCfg
    stored: MixerConfig | None = None


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    resize: Literal["tile", "interpolate"] | None = None,
    act: Gelu | None = None,
    tokens_mlp_dim: int | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
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
        resize: How weights are carried to another image size; not available in this version, leave it None.
        act: GELU flavour; None takes the weights' own, ``"tanh"`` for Google's and ``"erf"`` for MIIL's.
        tokens_mlp_dim: Hidden width of the token-mixing MLP.
        drop_rate: Dropout probability before the head.
        drop_path_rate: Stochastic-depth probability of the last layer.
        global_pool: ``"avg"``, or ``""`` to keep the tokens.
        features_only: Return a model that maps images to a list of feature maps (N, C, rows, columns).
        out_indices: Layers whose outputs ``features_only`` returns: indices, or the last n (3 by default).
        checkpoint_path: Load this safetensors file instead of the tag's weights; it must fit the model exactly.
        cache_dir: Cache of downloaded files; None for huggingface_hub's own (``HF_HOME``).
        pretrained_cfg: A tag, or a timm configuration that replaces the registered one.
        pretrained_cfg_overlay: Single entries to replace in the configuration, for instance ``{"file": path}``.
        device: Where the parameters are.
        dtype: Type of the parameters; None for float32.

    Returns:
        A :class:`mixerzoo.Mixer` in training mode, as timm's are (call ``.eval()`` to predict), or timm's feature
        wrapper around one.

    Raises:
        ModelNameError: The name, tag or source does not exist; near misses are listed.
        ConfigError: A size or flavour that cannot be used.
        WeightsError: The weights are absent, damaged or do not fit.
        HubError: A download failed; within ten seconds if the server cannot be reached.
    """
    if resize is not None:
        raise ConfigError(
            f"resize={resize!r}: this version of mixerzoo cannot carry weights to another resolution yet; leave "
            "resize=None and img_size at the weights' own."
        )
    if out_indices is not None and not features_only:
        raise ConfigError("out_indices is for features_only=True.")
    resolved = _resolve(name, pretrained_cfg, cache_dir)
    chosen: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "img_size": img_size,
        "act": act,
        "tokens_mlp_dim": tokens_mlp_dim,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
        "global_pool": global_pool,
        "out_indices": out_indices if isinstance(out_indices, int | None) else tuple(out_indices),
        "features_only": features_only or None,
        "device": device,
        "dtype": dtype,
        "cache_dir": cache_dir,
    }
    arguments = {key: value for key, value in chosen.items() if value is not None}
    stored = resolved.stored
    if stored is not None:
        arguments = {f.name: getattr(stored, f.name) for f in dataclasses.fields(MixerConfig)} | arguments
    overlay = dict(pretrained_cfg_overlay or {})
    if checkpoint_path is not None:
        overlay["file"] = str(checkpoint_path)
        stored = _as_asked(resolved, arguments)
    elif pretrained:
        _check_has_weights(resolved, overlay)
    return entrypoints.build(
        resolved.variant,
        pretrained or checkpoint_path is not None,
        pretrained_cfg=resolved.cfg,
        pretrained_cfg_overlay=overlay or None,
        stored=stored,
        **arguments,
    )


def _as_asked(resolved: _Resolved, arguments: dict[str, Any]) -> MixerConfig:
    """The configuration of the model asked for, which a file given by path must fit."""
    channels, *image_hw = resolved.cfg.input_size
    fields: dict[str, Any] = {
        "in_chans": channels,
        "img_size": tuple(image_hw),
        "num_classes": resolved.cfg.num_classes,
    }
    fields |= {f.name: arguments[f.name] for f in dataclasses.fields(MixerConfig) if f.name in arguments}
    return dataclasses.replace(VARIANTS[resolved.variant].config, **fields)


def _check_has_weights(resolved: _Resolved, overlay: dict[str, Any]) -> None:
    if resolved.cfg.has_weights or overlay.get("file") or overlay.get("hf_hub_id"):
        return
    raise WeightsError(
        f"No weights were ever released for {resolved.variant}; variants that have some: {', '.join(DEFAULT_TAGS)}."
    )


def _resolve(
    name: str, pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None, cache_dir: str | Path | None
) -> _Resolved:
    source, colon, location = name.partition(":")
    if colon:
        if source not in _SOURCES:
            raise ModelNameError(
                f"{name!r}: unknown source {source!r}.{did_you_mean(source, _SOURCES)} Names are variant[.tag], "
                "hf-hub:organisation/name[@revision] or local-dir:path."
            )
        if pretrained_cfg is not None:
            raise ConfigError(f"pretrained_cfg cannot be combined with {name!r}, which brings its own config.json.")
        return _resolve_hub(location, cache_dir) if source == "hf-hub" else _resolve_folder(location)
    tag = pretrained_cfg if isinstance(pretrained_cfg, str) else None
    full_name = _registered_name(f"{name}.{tag}" if tag else name)
    if pretrained_cfg is None or tag is not None:
        registered = timm.models.get_pretrained_cfg(full_name)
        assert registered is not None  # _registered_name has checked it
        return _Resolved(full_name.partition(".")[0], registered)
    given = PretrainedCfg(**pretrained_cfg) if isinstance(pretrained_cfg, dict) else pretrained_cfg
    return _Resolved(full_name.partition(".")[0], given)


def _resolve_hub(repo: str, cache_dir: str | Path | None) -> _Resolved:
    path = hub.fetch(repo, "config.json", cache_dir=cache_dir)
    try:
        parsed = read_hub_config(path, f"hf-hub:{repo}")
    except WeightsError:
        hub.discard(path)
        raise
    # Take the weights from the same commit as the configuration: the snapshot folder is named after it.
    pinned = f"{hub.split_revision(repo)[0]}@{path.parent.name}"
    return _with_source(parsed, hf_hub_id=pinned, source="hf-hub")


def _resolve_folder(location: str) -> _Resolved:
    folder = Path(location).expanduser()
    if not (folder / "config.json").is_file():
        raise ModelNameError(
            f"local-dir:{location} is not a folder with a config.json; to load a bare weights file write "
            "create_model(variant, checkpoint_path=file)."
        )
    return _with_source(read_hub_config(folder / "config.json", str(folder)), file=str(folder), source="local-dir")


def _with_source(parsed: HubConfig, **source: str) -> _Resolved:
    return _Resolved(parsed.variant, dataclasses.replace(parsed.pretrained_cfg, **source), parsed.config)


def _registered_name(name: str) -> str:
    """Map timm's and mislabelled names to ours; check that variant and tag exist."""
    variant, dot, tag = name.partition(".")
    if variant.removesuffix("_224") in VARIANTS and variant in TIMM_VARIANTS:
        variant = TIMM_VARIANTS[variant]
    full_name = variant + dot + tag
    if full_name in MISLABELLED:
        truth = MISLABELLED[full_name]
        warnings.warn(f"{name} is a wrong label and means {truth}: {MISLABEL_REASON}.", UserWarning, stacklevel=4)
        return truth
    if variant not in VARIANTS:
        near = did_you_mean(variant, VARIANTS)
        hint = f" For a Hub repository write hf-hub:{name}, for a folder local-dir:{name}." if "/" in name else ""
        raise ModelNameError(f"There is no model {name!r}.{near}{hint} mixerzoo.list_models() names them all.")
    if dot and full_name not in WEIGHTS:
        tags = [row.tag for row in WEIGHTS.values() if row.variant == variant]
        listed = f"its tags are {', '.join(tags)}" if tags else "no weights were ever released for it"
        raise ModelNameError(f"{variant} has no weights tag {tag!r}; {listed}.{did_you_mean(tag, tags)}")
    return full_name


def list_models(filter: str = "", *, pretrained: bool = False) -> list[str]:
    """Names that :func:`create_model` knows, in natural order.

    Args:
        filter: Wildcards, for instance ``"*b16*"``; with a dot in it the tags are listed too (``"mixer_b16.*"``).
        pretrained: List ``variant.tag`` of every checkpoint instead of the variants.
    """
    names: list[str] = timm.list_models(
        filter, module="entrypoints", pretrained=pretrained, include_tags=pretrained or "." in filter
    )
    return names


def is_model(name: str) -> bool:
    """Whether ``name`` is a variant, or a variant with one of its tags."""
    return name in VARIANTS or name in WEIGHTS


def get_pretrained_cfg(name: str) -> PretrainedCfg:
    """timm's description of a tag (of the default tag, without one): sources, preprocessing, labels.

    Raises:
        ModelNameError: There is no such variant or tag.
    """
    return _resolve(name, None, None).cfg


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
        mixer = next((m for m in model_or_name.modules() if isinstance(m, Mixer)), None)
        if mixer is not None:
            cfg["input_size"] = (mixer.in_chans, *mixer.config.image_hw)
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


def labels(model_or_name: nn.Module | str) -> list[str]:
    """Class names in the order of the model's outputs.

    ImageNet's are timm's WordNet descriptions; a model whose head was replaced, or that stems from an unlabelled
    repository, has none.

    Raises:
        ModelNameError: There is no such name, or the classes have no known names.
    """
    if isinstance(model_or_name, str):
        cfg, outputs = get_pretrained_cfg(model_or_name).to_dict(), None
    else:
        cfg = dict(getattr(model_or_name, "pretrained_cfg", None) or {})
        outputs = getattr(model_or_name, "num_classes", None)
    if outputs is None or outputs == cfg.get("num_classes"):
        if cfg.get("label_names"):
            return list(cfg["label_names"])
        row = WEIGHTS.get(f"{cfg.get('architecture')}.{_true_tag(cfg)}")
        if row is not None:
            return list(_imagenet_labels(row.label_set))
    raise ModelNameError(
        "The names of this model's classes are not known: they come with a released tag, or as label_names in the "
        "config.json of a Hub repository."
    )


def _true_tag(cfg: dict[str, Any]) -> str:
    name = f"{cfg.get('architecture')}.{cfg.get('tag')}"
    return MISLABELLED.get(name, name).partition(".")[2]


@cache
def _imagenet_labels(label_set: str) -> tuple[str, ...]:
    return tuple(ImageNetInfo(label_set).label_descriptions())
