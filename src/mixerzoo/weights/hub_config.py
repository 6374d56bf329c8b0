"""Reading the ``config.json`` of a Hub repository or a saved folder: untrusted data, checked field by field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg

from mixerzoo.config import MixerConfig
from mixerzoo.errors import ConfigError, WeightsError
from mixerzoo.zoo import MISLABELLED, TIMM_VARIANTS, VARIANTS, WEIGHTS

_SAME_NAME = ("img_size", "in_chans", "num_classes", "patch_size", "embed_dim", "global_pool", "drop_rate")
_IGNORED_IF_FALSE = ("proj_drop_rate", "nlhb", "stem_norm", "drop_path_rate", "pretrained", "features_only")
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
        WeightsError: It is no JSON object, names another architecture than a Mixer, or has arguments that a Mixer
            cannot honour.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"config.json of {where} is not valid JSON ({error}).") from None
    if not isinstance(raw, dict):
        raise WeightsError(f"config.json of {where} must hold a JSON object, not {type(raw).__name__}.")
    try:
        return parse_hub_config(raw, where)
    except ConfigError as error:
        raise WeightsError(f"config.json of {where}: {error}") from None


def parse_hub_config(raw: Mapping[str, Any], where: str) -> HubConfig:
    """Check a parsed ``config.json``; both timm's nested form and its older flat one are understood."""
    architecture = raw.get("architecture")
    variant = TIMM_VARIANTS.get(str(architecture), str(architecture))
    if variant not in VARIANTS:
        raise WeightsError(
            f"{where} holds a {architecture!r}, not an MLP-Mixer: mixerzoo loads {', '.join(TIMM_VARIANTS)} and its "
            f"own variants; timm.create_model may load this one."
        )
    described = raw.get("pretrained_cfg", raw)
    if not isinstance(described, Mapping):
        raise WeightsError(f"config.json of {where}: pretrained_cfg must be an object.")
    pretrained_cfg = _pretrained_cfg(described, where)
    if "num_classes" in raw:
        pretrained_cfg.num_classes = _integer(raw["num_classes"], "num_classes", where)
    labels = raw.get("label_names", described.get("label_names", described.get("labels")))
    if labels is not None:
        pretrained_cfg.label_names = _label_names(labels, pretrained_cfg.num_classes, where)
    fields = _model_fields(raw, variant, where)
    fields.setdefault("num_classes", pretrained_cfg.num_classes)
    fields.setdefault("in_chans", pretrained_cfg.input_size[0])
    fields.setdefault("img_size", pretrained_cfg.input_size[1:])
    fields.setdefault("act", _default_act(pretrained_cfg.tag, architecture))
    config = dataclasses.replace(VARIANTS[variant].config, **fields)
    pretrained_cfg.architecture = variant
    pretrained_cfg.num_classes = config.num_classes
    pretrained_cfg.input_size = (config.in_chans, *config.image_hw)
    pretrained_cfg.fixed_input_size = True
    pretrained_cfg.first_conv, pretrained_cfg.classifier = "stem.proj", "head"
    return HubConfig(variant, config, pretrained_cfg)


def _default_act(tag: str | None, architecture: Any) -> str:
    """Google's tags want tanh; everything else called ``mixer_*_224`` was trained with timm's erf."""
    if architecture in VARIANTS:
        return VARIANTS[architecture].config.act
    google = {row.tag for row in WEIGHTS.values() if row.act == "tanh"} | {n.partition(".")[2] for n in MISLABELLED}
    return "tanh" if tag in google else "erf"


def _model_fields(raw: Mapping[str, Any], variant: str, where: str) -> dict[str, Any]:
    """Translate timm's ``model_args`` and our own ``mixerzoo`` section into fields of :class:`MixerConfig`."""
    arguments = raw.get("model_args") or {}
    own = raw.get("mixerzoo") or {}
    if not isinstance(arguments, Mapping) or not isinstance(own, Mapping):
        raise WeightsError(f"config.json of {where}: model_args and mixerzoo must be objects.")
    fields: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in _SAME_NAME:
            fields[name] = tuple(value) if isinstance(value, list) else value
        elif name == "num_blocks":
            fields["depth"] = value
        elif name == "act_layer":
            if value not in ("gelu", "gelu_tanh"):
                raise WeightsError(f"config.json of {where}: act_layer={value!r}; a Mixer has gelu or gelu_tanh.")
            fields["act"] = "tanh" if value == "gelu_tanh" else "erf"
        elif name != "mlp_ratio" and not (name in _IGNORED_IF_FALSE and not value):
            raise WeightsError(f"config.json of {where}: model argument {name}={value!r} is not one of a Mixer's.")
    if "mlp_ratio" in arguments:
        width = _integer(fields.get("embed_dim", VARIANTS[variant].config.embed_dim), "embed_dim", where)
        ratio = arguments["mlp_ratio"]
        ratios = ratio if isinstance(ratio, list) else [ratio, ratio]
        if len(ratios) != 2 or not all(isinstance(r, int | float) and 0 < r < 1e6 for r in ratios):
            raise WeightsError(f"config.json of {where}: mlp_ratio={ratio!r} must be one or two positive numbers.")
        fields["tokens_mlp_dim"], fields["channels_mlp_dim"] = (int(r * width) for r in ratios)
    known = {f.name for f in dataclasses.fields(MixerConfig)}
    for name, value in own.items():
        if name not in known:
            raise WeightsError(f"config.json of {where}: mixerzoo.{name} is not a field of MixerConfig.")
        fields[name] = tuple(value) if isinstance(value, list) else value
    return fields


def _pretrained_cfg(described: Mapping[str, Any], where: str) -> PretrainedCfg:
    known = {f.name for f in dataclasses.fields(PretrainedCfg)} - set(_SOURCE_FIELDS)
    values = {name: value for name, value in described.items() if name in known and value is not None}
    if "input_size" in values:
        size = values["input_size"]
        if not isinstance(size, list) or len(size) != 3:
            raise WeightsError(f"config.json of {where}: input_size={size!r} must be [channels, height, width].")
        values["input_size"] = tuple(_integer(side, "input_size", where) for side in size)
    channels = values.get("input_size", (3,))[0]
    for name in ("mean", "std"):
        if name in values:
            values[name] = _per_channel(values[name], channels, name, where)
    if "num_classes" in values:
        _integer(values["num_classes"], "num_classes", where)
    crop = values.get("crop_pct", 0.875)
    if isinstance(crop, bool) or not isinstance(crop, int | float) or not 0.0 < crop <= 1.0:
        raise WeightsError(f"config.json of {where}: crop_pct={crop!r} must lie in (0, 1].")
    for name, choices in (
        ("interpolation", ("bicubic", "bilinear", "nearest", "random")),
        ("crop_mode", ("center", "squash", "border")),
    ):
        if values.get(name, choices[0]) not in choices:
            raise WeightsError(f"config.json of {where}: {name}={values[name]!r}; expected {', '.join(choices)}.")
    return PretrainedCfg(**values)


def _integer(value: Any, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise WeightsError(f"config.json of {where}: {name}={value!r} must be a whole number.")
    return value


def _per_channel(value: Any, channels: int, name: str, where: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) not in (1, 3, channels) or not all(isinstance(v, int | float) for v in numbers):
        raise WeightsError(f"config.json of {where}: {name}={value!r} must be one number a channel.")
    return tuple(float(v) for v in numbers)


def _label_names(labels: Any, num_classes: int, where: str) -> tuple[str, ...]:
    if not isinstance(labels, list) or len(labels) != num_classes or not all(isinstance(n, str) for n in labels):
        raise WeightsError(f"config.json of {where}: label_names must be {num_classes} names, one a class.")
    return tuple(labels)
