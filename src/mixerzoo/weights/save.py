"""Writing a model as a folder that ``local-dir:`` names load, here and in timm.

``config.json`` names timm's architecture and arguments where timm can express the model, so that plain timm and
Hugging Face's timm wrapper load it; our own fields stand under ``mixerzoo``, which they ignore. Other models name our
architecture, which timm knows after ``import mixerzoo``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mixerzoo.atomic import write_atomically
from mixerzoo.config import PRESETS, MixerConfig
from mixerzoo.weights.card import model_card
from mixerzoo.weights.files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, write_tensors
from mixerzoo.weights.hub_config import check_preprocessing
from mixerzoo.weights.sizes import check_limits, check_side
from mixerzoo.zoo import TIMM_VARIANTS, Score, WeightTag

_DESCRIPTION = ("interpolation", "crop_pct", "crop_mode", "mean", "std")
_TIMM_NAMES = {ours: theirs for theirs, ours in TIMM_VARIANTS.items()}


def save_folder(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    config: MixerConfig,
    variant: str,
    preprocessing: Mapping[str, Any],
    label_names: Sequence[str] | None = None,
    row: WeightTag | None = None,
    origin: Mapping[str, Any] | None = None,
    scores: Sequence[Score] = (),
    load_name: str | None = None,
) -> None:
    """Write ``model.safetensors``, ``config.json`` and, unless there is one, a model card; each in one move.

    A configuration that other weights came with goes first and the new one comes last, so that a process killed in
    between leaves a folder that is refused, never one whose parts belong to different models.

    Args:
        tensors: Every parameter under timm's name.
        folder: Created if need be.
        config: The model's configuration, which is stored field by field.
        variant: The architecture's name in the zoo.
        preprocessing: timm's data config (``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``).
        label_names: Names of the classes, in the order of the outputs.
        row: The released checkpoint that it is, if it is one.
        origin: For the card: where the weights come from.
        scores: For the card: how good the model is known to be, besides what ``row`` says.
        load_name: For the card: the name by which ``create_model`` loads the folder.

    Raises:
        ConfigError: Sizes or preprocessing that would be refused when the folder is loaded.
        StorageError: A file cannot be stored.
    """
    check_side(config)
    check_limits(config)
    check_preprocessing(preprocessing, config.in_chans)
    described = _folder_config(config, variant, preprocessing, label_names=label_names, row=row)
    text = json.dumps(described, indent=2) + "\n"
    architecture = described["architecture"]
    card = model_card(
        config, preprocessing, architecture=architecture, row=row, origin=origin, scores=scores, load_name=load_name
    )
    stored = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    if (folder / CONFIG_FILE).is_file() and (folder / CONFIG_FILE).read_text(encoding="utf-8") != text:
        (folder / CONFIG_FILE).unlink()
    write_tensors(stored, folder / WEIGHTS_FILE)
    write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    if not (folder / CARD_FILE).exists():
        write_atomically(folder / CARD_FILE, lambda path: path.write_text(card, encoding="utf-8"))


def _folder_config(
    config: MixerConfig,
    variant: str,
    preprocessing: Mapping[str, Any],
    *,
    label_names: Sequence[str] | None = None,
    row: WeightTag | None = None,
) -> dict[str, Any]:
    """The content of ``config.json``; arguments as for :func:`save_folder`."""
    own = dataclasses.asdict(config)
    arguments = _timm_arguments(config, variant)
    described = {name: preprocessing[name] for name in _DESCRIPTION if name in preprocessing}
    content: dict[str, Any] = {
        "architecture": variant if arguments is None else _TIMM_NAMES[variant],
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        "global_pool": config.global_pool,
        "model_args": own if arguments is None else arguments,
        "pretrained_cfg": {
            "tag": row.tag if row else None,
            "custom_load": False,
            "input_size": [config.in_chans, *config.image_hw],
            "fixed_input_size": True,
            **described,
            "num_classes": config.num_classes,
            "pool_size": None,
            "first_conv": "stem.proj",
            "classifier": "head",
            "license": row.license if row else None,
        },
        "mixerzoo": own,
    }
    if label_names is not None:
        content["label_names"] = list(label_names)
    return content


def _timm_arguments(config: MixerConfig, variant: str) -> dict[str, Any] | None:
    """Arguments with which timm's own entry point builds this model, or None where it cannot.

    timm fixes patch, layers, channels and the LayerNorm epsilon by name; GELU flavour and stochastic depth are no sizes
    (the model card says what it does differently).
    """
    preset = PRESETS[variant]
    fixed = ("patch_size", "embed_dim", "depth", "norm_eps")
    if variant not in _TIMM_NAMES or any(getattr(config, name) != getattr(preset, name) for name in fixed):
        return None
    arguments: dict[str, Any] = {}
    for name in ("img_size", "in_chans", "global_pool"):
        if getattr(config, name) != getattr(preset, name):
            arguments[name] = getattr(config, name)
    widths = (config.tokens_mlp_dim, config.channels_mlp_dim)
    if widths != (preset.tokens_mlp_dim, preset.channels_mlp_dim):
        arguments["mlp_ratio"] = [_ratio(width, config.embed_dim) for width in widths]
    return arguments


def _ratio(width: int, channels: int) -> float:
    """A ratio that timm's ``int(ratio * channels)`` turns into exactly ``width``."""
    ratio = width / channels
    return ratio if int(ratio * channels) == width else math.nextafter(ratio, math.inf)
