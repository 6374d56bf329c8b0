"""Our variants in timm's registry: ``timm.create_model("mixer_b16.goog_in1k", pretrained=True)`` builds them too.

Importing this module adds entries to timm's registry and does nothing else.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from mixerzoo.config import MixerConfig, image_size
from mixerzoo.model import Mixer
from mixerzoo.resize import Resize, resized_config
from mixerzoo.weights.load import load_from, load_weights
from mixerzoo.zoo import (
    CIFAR10_LABELS,
    DEFAULT_TAGS,
    MISLABEL_REASON,
    MISLABELLED,
    VARIANTS,
    WEIGHTS,
    Variant,
    WeightTag,
)

__all__: list[str] = []  # timm's registration appends the names of the entry points

_ASSETS = Path(__file__).parent / "assets"
_ALWAYS: dict[str, Any] = {"fixed_input_size": True, "first_conv": "stem.proj", "classifier": "head"}


def _weights_cfg(row: WeightTag) -> PretrainedCfg:
    config = VARIANTS[row.variant].config
    return PretrainedCfg(
        url=row.npz_url,
        file=str(_ASSETS / row.asset) if row.asset else None,
        hf_hub_id=row.hub_id,
        input_size=(config.in_chans, *config.image_hw),
        interpolation=row.interpolation,
        crop_pct=row.crop_pct,
        mean=row.mean,
        std=row.std,
        num_classes=row.num_classes,
        label_names=CIFAR10_LABELS if row.label_set == "cifar-10" else None,
        **_ALWAYS,
        license=row.license,
        description=row.description,
        origin_url=row.npz_url,
    )


def _untrained_cfg(variant: Variant) -> PretrainedCfg:
    return PretrainedCfg(
        input_size=(variant.config.in_chans, *variant.config.image_hw),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_classes=variant.config.num_classes,
        **_ALWAYS,
    )


def _default_cfgs() -> dict[str, Any]:
    cfgs = {}
    for variant in VARIANTS.values():
        rows = [row for row in WEIGHTS.values() if row.variant == variant.name]
        for row in rows:
            star = "*" if row.tag == DEFAULT_TAGS[variant.name] else ""  # timm's mark of the default tag
            cfgs[row.name + star] = _weights_cfg(row)
        if not rows:
            cfgs[variant.name] = _untrained_cfg(variant)
    return dict(generate_default_cfgs(cfgs))


default_cfgs = _default_cfgs()


def warn_of_label(asked: str, truth: str, *, stacklevel: int) -> None:
    """Say that a name is a wrong label, and why."""
    warnings.warn(f"{asked} is a wrong label and means {truth}: {MISLABEL_REASON}.", UserWarning, stacklevel=stacklevel)


def _stored_config(variant: str, cfg: PretrainedCfg, saved_arguments: dict[str, Any]) -> MixerConfig:
    """Sizes of the weights that ``cfg`` describes: the source's own, not those of the model asked for."""
    channels, *image_hw = cfg.input_size
    fields = {f.name: saved_arguments[f.name] for f in dataclasses.fields(MixerConfig) if f.name in saved_arguments}
    fields |= {"in_chans": channels, "img_size": image_size(image_hw), "num_classes": cfg.num_classes}
    return dataclasses.replace(VARIANTS[variant].config, **fields)


def _described(
    variant: str, pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None, overlay: dict[str, Any] | None
) -> PretrainedCfg:
    """timm's description of the weights, from whatever was given."""
    if isinstance(pretrained_cfg, str) and (truth := MISLABELLED.get(f"{variant}.{pretrained_cfg}")):
        warn_of_label(f"{variant}.{pretrained_cfg}", truth, stacklevel=6)  # timm.create_model's caller
        pretrained_cfg = truth.partition(".")[2]
    if isinstance(pretrained_cfg, PretrainedCfg):
        pretrained_cfg = pretrained_cfg.to_dict(remove_null=False)
    if isinstance(pretrained_cfg, dict) and pretrained_cfg.get("source") == "hf-hub":
        pretrained_cfg = pretrained_cfg | {"file": None, "url": None}  # a stranger's config.json names no other source
    cfg = dataclasses.replace(resolve_pretrained_cfg(variant, pretrained_cfg, overlay), **_ALWAYS)
    row = WEIGHTS.get(f"{variant}.{cfg.tag}")
    if row is not None and cfg.hf_hub_id not in (None, row.hub_id) and cfg.url == row.npz_url:
        cfg = dataclasses.replace(cfg, url=None)  # a repository of one's own has no original that could step in
    return cfg


def build(
    variant: str,
    pretrained: bool = False,
    *,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    out_indices: int | tuple[int, ...] = 3,
    checkpoint_path: str | Path | None = None,
    stored: MixerConfig | None = None,
    resize: Resize | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build one variant through timm's builder.

    Args:
        variant: Our name of the architecture.
        pretrained: Load the weights that the configuration describes.
        pretrained_cfg: timm's description of the weights: a tag, a dictionary, or None for the default tag.
        pretrained_cfg_overlay: Single entries to replace in it.
        cache_dir: The Hub cache; None for huggingface_hub's own.
        out_indices: Layers that ``features_only=True`` returns.
        checkpoint_path: Load this file instead; it must fit the model exactly.
        stored: Sizes of the stored weights where they are not the variant's own.
        resize: How weights, or the variant's widths, are carried to another image size.
        pretrained_model_args: The same as timm says it: arguments that the stored weights were saved with.
        **kwargs: Fields of :class:`mixerzoo.MixerConfig`, ``features_only``, ``device`` and ``dtype``, as timm's
            convention passes them.

    Raises:
        ConfigError: A size or flavour that cannot be used.
        WeightsError: The weights are absent, damaged or do not fit.
    """
    cfg = _described(variant, pretrained_cfg, pretrained_cfg_overlay)
    row = WEIGHTS.get(f"{variant}.{cfg.tag}")
    preset = VARIANTS[variant].config
    arguments = dataclasses.asdict(preset)
    for name in ("img_size", "in_chans", "num_classes"):
        del arguments[name]  # timm's builder takes these from the configuration of the weights
    if row is not None:
        arguments["act"] = row.act
    arguments |= kwargs
    if stored is None:  # called by timm; a folder's or repository's own arguments arrive among the others
        stored = _stored_config(variant, cfg, pretrained_model_args or (kwargs if cfg.source else {}))

    def construct(**fields: Any) -> Mixer:
        device, dtype = fields.pop("device", None), fields.pop("dtype", None)
        config = MixerConfig(**fields | {"img_size": image_size(fields["img_size"])})
        if resize is not None or (pretrained and checkpoint_path is None):
            config = resized_config(stored, config, resize)
        if checkpoint_path is not None:
            model = Mixer.from_config(config, device="meta")
            load_weights(model, Path(checkpoint_path), stored=config, dtype=dtype or torch.float32)
        elif pretrained:
            native = dataclasses.replace(config, img_size=stored.img_size, tokens_mlp_dim=stored.tokens_mlp_dim)
            model = Mixer.from_config(native, device="meta")
            load_dtype = dtype or torch.float32
            if config.grid_size != stored.grid_size:  # resizing is arithmetic, done before rounding
                load_dtype = torch.promote_types(load_dtype, torch.float32)
            name = f"{variant}.{cfg.tag}" if cfg.tag else variant
            load_from(model, cfg, name=name, stored=stored, cache_dir=cache_dir, dtype=load_dtype)
            model.set_input_size(config.img_size, resize=resize)
        else:
            return Mixer.from_config(config, device=device, dtype=dtype)
        return model.to(device or torch.get_default_device(), dtype)

    model: nn.Module = build_model_with_cfg(
        construct,
        variant,
        pretrained=False,
        pretrained_cfg=cfg.to_dict(remove_null=False),
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **arguments,
    )
    return model


def _entrypoint(variant: Variant) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(variant.name, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = variant.name
    entrypoint.__doc__ = f"{variant.title} (Tolstikhin et al. 2021, arXiv 2105.01601)."
    return entrypoint


for _variant in VARIANTS.values():
    globals()[_variant.name] = register_model(_entrypoint(_variant))
