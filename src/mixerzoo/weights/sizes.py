"""Recognising a Mixer by the shapes of its parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mixerzoo.checks import check_integer
from mixerzoo.config import PRESETS, Gelu, MixerConfig, image_size
from mixerzoo.errors import ConfigError, WeightsError

# Far beyond any Mixer, and small enough that a hostile file cannot exhaust time or memory.
_LIMITS = {
    "depth": 512,
    "embed_dim": 65_536,
    "tokens_mlp_dim": 1_048_576,
    "channels_mlp_dim": 1_048_576,
    "in_chans": 4096,
}
_MAX_SIDE = 8192
_MAX_PARAMETERS = 4_000_000_000
SHAPE_FIELDS = (
    "patch_size",
    "in_chans",
    "num_classes",
    "embed_dim",
    "depth",
    "tokens_mlp_dim",
    "channels_mlp_dim",
    "grid_size",
)
"""Everything that determines the shapes of the parameters."""
_VARIANT_FIELDS = ("patch_size", "embed_dim", "depth", "channels_mlp_dim")


def check_limits(config: MixerConfig) -> None:
    """Raise ConfigError if sizes from an untrusted file are beyond any Mixer."""
    for name, limit in _LIMITS.items():
        check_integer(name, getattr(config, name), minimum=1, maximum=limit)
    check_integer("the number of parameters", config.num_parameters, minimum=1, maximum=_MAX_PARAMETERS)


def config_of(
    tensors: Mapping[str, Tensor], path: Path, *, act: Gelu, img_size: int | tuple[int, int] | None = None
) -> MixerConfig:
    """The configuration that parameters with timm's names have the shapes of.

    Args:
        tensors: Parameters by name.
        path: What to call them in messages.
        act: GELU flavour, which shapes do not tell.
        img_size: The image size, which shapes tell only of square patch grids.

    Raises:
        WeightsError: They are no Mixer's, or the grid is not square and ``img_size`` not given, or another one.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != ndim:
            found = f"has shape {tuple(tensors[name].shape)}" if name in tensors else "is not there"
            raise WeightsError(f"{path} does not hold the weights of a Mixer: {name} {found}.")
        return tuple(tensors[name].shape)

    channels, in_chans, patch, _ = shape("stem.proj.weight", 4)
    tokens_hidden, tokens = shape("blocks.0.mlp_tokens.fc1.weight", 2)
    try:
        config = MixerConfig(
            img_size=_image_size(tokens, patch, img_size),
            patch_size=patch,
            in_chans=in_chans,
            num_classes=shape("head.bias", 1)[0] if "head.bias" in tensors else 0,
            embed_dim=channels,
            depth=1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d{1,4})\.", name))),
            tokens_mlp_dim=tokens_hidden,
            channels_mlp_dim=shape("blocks.0.mlp_channels.fc1.bias", 1)[0],
            act=act,
        )
        check_limits(config)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from None
    if config.num_tokens != tokens:
        raise WeightsError(
            f"img_size={img_size!r} makes {config.num_tokens} patches of {patch} pixels; {path} is for {tokens}."
        )
    return config


def _image_size(tokens: int, patch: int, given: int | tuple[int, int] | None) -> int | tuple[int, int]:
    if given is not None:
        return image_size(given)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConfigError(f"{tokens} patches are no square grid: say the image size (img_size=, or --img-size).")
    return side * patch


def check_side(config: MixerConfig) -> None:
    """Raise ConfigError if an image would be larger than any that a Mixer of an untrusted file may ask for."""
    check_integer("img_size", max(config.image_hw), minimum=1, maximum=_MAX_SIDE)


def variant_of(config: MixerConfig) -> str | None:
    """Name of the variant that has these sizes, at whatever image size; None if there is none.

    The token-mixing MLP may be a whole number of times wider, as tiling makes it.
    """
    for name, preset in PRESETS.items():
        same = all(getattr(config, field) == getattr(preset, field) for field in _VARIANT_FIELDS)
        if same and config.tokens_mlp_dim % preset.tokens_mlp_dim == 0:
            return name
    return None


def recognise(config: MixerConfig, path: Path) -> str:
    """Like :func:`variant_of`, but insist.

    Raises:
        WeightsError: No variant has these sizes; the message says what is different from the nearest.
    """
    name = variant_of(config)
    if name is not None:
        return name
    fields = (*_VARIANT_FIELDS, "tokens_mlp_dim")
    nearest = min(PRESETS, key=lambda name: len(differences(config, PRESETS[name], fields)))
    raise WeightsError(
        f"{path} fits no variant; the nearest is {nearest}, but it has "
        f"{', '.join(differences(config, PRESETS[nearest], fields))}; the file may not be whole (create_model's "
        "checkpoint_path fills a model of sizes of one's own)."
    )


def differences(found: MixerConfig, expected: MixerConfig, fields: tuple[str, ...] = SHAPE_FIELDS) -> list[str]:
    """Where two configurations differ, in words: ``"depth 11 instead of 12"``."""
    return [
        f"{field} {getattr(found, field)} instead of {getattr(expected, field)}"
        for field in fields
        if getattr(found, field) != getattr(expected, field)
    ]
