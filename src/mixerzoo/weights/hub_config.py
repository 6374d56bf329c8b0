"""Reading the ``config.json`` of a Hub repository or a saved folder: untrusted data, checked field by field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg

from mixerzoo.checks import check_choice, check_integer, check_number
from mixerzoo.config import MixerConfig
from mixerzoo.errors import ConfigError, DamagedFileError, WeightsError
from mixerzoo.weights.sizes import check_limits, check_side
from mixerzoo.zoo import MISLABELLED, TIMM_VARIANTS, VARIANTS, WEIGHTS

_SAME_NAME = (
    "img_size",
    "in_chans",
    "num_classes",
    "patch_size",
    "embed_dim",
    "global_pool",
    "drop_rate",
    "drop_path_rate",
)
_IGNORED_IF_FALSE = ("proj_drop_rate", "nlhb", "stem_norm", "pretrained", "features_only")
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
_LABEL_FIELDS = ("label_names", "label_descriptions")  # taken from where they are checked
_SOURCE_FIELDS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")


@dataclass(frozen=True)
class HubConfig:
    """What a ``config.json`` says.

    Attributes:
        variant: Our name of the architecture.
        config: Sizes and numerics of the stored weights.
        pretrained_cfg: timm's description of preprocessing and labels, without any source of weights.
    """

    variant: str
    config: MixerConfig
    pretrained_cfg: PretrainedCfg


def read_hub_config(path: Path, where: str) -> HubConfig:
    """Read and check a ``config.json``.

    Args:
        path: The file.
        where: What to call it in messages.

    Raises:
        DamagedFileError: It is no JSON object.
        WeightsError: It names another architecture than a Mixer, or has arguments that a Mixer cannot honour.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"a JSON object is needed, not {type(raw).__name__}")
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"config.json of {where} is not valid JSON ({error}).") from None
    try:
        return _parse(raw)
    except ConfigError as error:
        raise WeightsError(f"config.json of {where}: {error}") from None


def _parse(raw: Mapping[str, Any]) -> HubConfig:
    """Check a parsed ``config.json``; both timm's nested form and its older flat one are understood."""
    if "architecture" not in raw:
        raw = _from_configilm(raw)
    architecture = raw.get("architecture")
    variant = TIMM_VARIANTS.get(str(architecture), str(architecture))
    if variant not in VARIANTS:
        raise ConfigError(
            f"architecture {architecture!r} is not an MLP-Mixer. mixerzoo loads {', '.join(TIMM_VARIANTS)} and its "
            "own variants; timm.create_model may load this one."
        )
    described = raw.get("pretrained_cfg", raw)
    if not isinstance(described, Mapping):
        raise ConfigError("pretrained_cfg must be an object.")
    pretrained_cfg = _pretrained_cfg(described)
    if "num_classes" in raw:
        check_integer("num_classes", raw["num_classes"], minimum=0)
        pretrained_cfg.num_classes = raw["num_classes"]
    labels = raw.get("label_names", described.get("label_names", described.get("labels")))
    if labels is not None:
        pretrained_cfg.label_names = _label_names(labels, pretrained_cfg.num_classes)
    fields = _model_fields(raw, variant)
    fields.setdefault("num_classes", pretrained_cfg.num_classes)
    fields.setdefault("in_chans", pretrained_cfg.input_size[0])
    fields.setdefault("img_size", pretrained_cfg.input_size[1:])
    fields.setdefault("act", _default_act(pretrained_cfg.tag, architecture))
    config = dataclasses.replace(VARIANTS[variant].config, **fields)
    check_side(config)
    check_limits(config)
    pretrained_cfg.architecture = variant
    pretrained_cfg.num_classes = config.num_classes
    pretrained_cfg.input_size = (config.in_chans, *config.image_hw)
    return HubConfig(variant, config, pretrained_cfg)


def _from_configilm(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ConfigILM's classifiers (BigEarthNet's Mixers, for instance) say of themselves, in timm's words.

    Its ``ILMConfiguration`` is stored under ``config`` by huggingface_hub's model mixin; it has the timm name, the
    channels, classes and a square image size, and nothing of preprocessing.
    """
    described = raw.get("config", raw)
    if not isinstance(described, Mapping) or "timm_model_name" not in described:
        return raw
    names = {
        "image_size": "img_size",
        "channels": "in_chans",
        "drop_rate": "drop_rate",
        "drop_path_rate": "drop_path_rate",
    }
    arguments = {ours: described[theirs] for theirs, ours in names.items() if described.get(theirs) is not None}
    size, channels = arguments.get("img_size", 120), arguments.get("in_chans", 3)  # ConfigILM's defaults
    variant = str(described["timm_model_name"]).partition(".")[0]
    return {
        "architecture": variant,
        "num_classes": described.get("classes", 10),
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [channels, size, size]},
        "mixerzoo": {"act": "erf"},  # it trains with timm, whatever the weights that it started from
        "label_names": described.get("class_names") or None,
    }


def _default_act(tag: str | None, architecture: Any) -> str:
    """Google's tags want tanh; everything else called ``mixer_*_224`` was trained with timm's erf."""
    if architecture in VARIANTS:
        row = WEIGHTS.get(f"{architecture}.{tag}")
        return row.act if row is not None else VARIANTS[architecture].config.act
    google = {row.tag for row in WEIGHTS.values() if row.act == "tanh"} | {n.partition(".")[2] for n in MISLABELLED}
    return "tanh" if tag in google else "erf"


def _model_fields(raw: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Fields of :class:`MixerConfig` from the sections ``model_args`` and ``mixerzoo``.

    ``model_args`` are timm's for an architecture of timm's and our own fields for one of ours; ``mixerzoo`` holds our
    own fields beside a timm architecture, and timm ignores it.
    """
    arguments = raw.get("model_args") or {}
    own = raw.get("mixerzoo") or {}
    if not isinstance(arguments, Mapping) or not isinstance(own, Mapping):
        raise ConfigError("model_args and mixerzoo must be objects.")
    if raw["architecture"] in VARIANTS:
        return _own_fields(arguments, "model_args") | _own_fields(own, "mixerzoo")
    fields: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in _SAME_NAME:
            fields[name] = tuple(value) if isinstance(value, list) else value
        elif name == "num_blocks":
            fields["depth"] = value
        elif name == "act_layer":
            if value not in ("gelu", "gelu_tanh"):
                raise ConfigError(f"act_layer={value!r}; a Mixer has gelu or gelu_tanh.")
            fields["act"] = "tanh" if value == "gelu_tanh" else "erf"
        elif name != "mlp_ratio" and not (name in _IGNORED_IF_FALSE and not value):
            raise ConfigError(f"model argument {name}={value!r} is not one of a Mixer's.")
    if "mlp_ratio" in arguments:
        width = fields.get("embed_dim", VARIANTS[variant].config.embed_dim)
        check_integer("embed_dim", width, minimum=1)
        ratio = arguments["mlp_ratio"]
        ratios = ratio if isinstance(ratio, list) and len(ratio) == 2 else [ratio, ratio]
        for value in ratios:
            check_number("mlp_ratio", value, minimum=0.0, below=1e6)
        fields["tokens_mlp_dim"], fields["channels_mlp_dim"] = (int(r * width) for r in ratios)
    return fields | _own_fields(own, "mixerzoo")


def _own_fields(section: Mapping[str, Any], title: str) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(MixerConfig)}
    for name in section:
        if name not in known:
            raise ConfigError(f"{title}.{name} is not a field of MixerConfig.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}


def _pretrained_cfg(described: Mapping[str, Any]) -> PretrainedCfg:
    known = {f.name for f in dataclasses.fields(PretrainedCfg)} - set(_SOURCE_FIELDS) - set(_LABEL_FIELDS)
    values = {name: value for name, value in described.items() if name in known and value is not None}
    if "input_size" in values:
        size = values["input_size"]
        if not isinstance(size, list) or len(size) != 3:
            raise ConfigError(f"input_size={size!r} must be [channels, height, width].")
        for side in size:
            check_integer("input_size", side, minimum=1)
        values["input_size"] = tuple(size)
    channels = values.get("input_size", (3,))[0]
    check_preprocessing(values, channels)
    values |= {name: tuple(float(v) for v in values[name]) for name in ("mean", "std") if name in values}
    check_integer("num_classes", values.get("num_classes", 0), minimum=0)
    if not isinstance(values.get("tag", ""), str):
        raise ConfigError(f"tag={values['tag']!r} must be text.")
    return PretrainedCfg(**values)


def check_preprocessing(described: Mapping[str, Any], channels: int) -> None:
    """Check those entries of timm's data config that are there.

    Raises:
        ConfigError: ``mean`` or ``std`` is not one number a channel, or ``interpolation``, ``crop_pct`` or
            ``crop_mode`` is none that timm's transforms take.
    """
    for name in ("mean", "std"):
        if name in described:
            numbers = described[name] if isinstance(described[name], list | tuple) else []
            if len(numbers) not in (1, 3, channels):
                raise ConfigError(f"{name}={described[name]!r} must be one number a channel.")
            for number in numbers:
                check_number(name, number, minimum=1e-6 if name == "std" else -1e6, below=1e6)
    check_number("crop_pct", described.get("crop_pct", 0.875), minimum=0.25, maximum=1.0)
    check_choice("interpolation", described.get("interpolation", "bicubic"), _INTERPOLATIONS)
    check_choice("crop_mode", described.get("crop_mode", "center"), ("center", "squash", "border"))


def _label_names(labels: Any, num_classes: int) -> tuple[str, ...]:
    if not isinstance(labels, list) or len(labels) != num_classes or not all(isinstance(n, str) for n in labels):
        raise ConfigError(f"label_names must be {num_classes} names, one a class.")
    return tuple(labels)
