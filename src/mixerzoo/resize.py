"""Carrying token-mixing weights to another patch grid, by tiling (the paper's scheme) or by interpolation.

Sources: Tolstikhin et al. 2021 (arXiv 2105.01601), appendix C, for tiling. Interpolation treats every hidden unit's
weights as a map over the patch grid; it is this project's, no paper defines it.

Legend: H x W the grid that the weights are for, S = H W its tokens, S' those of the new grid, D the hidden width of the
token-mixing MLP, K the number of tiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mixerzoo.checks import check_choice
from mixerzoo.config import MixerConfig
from mixerzoo.errors import ConfigError

Resize = Literal["tile", "interpolate"]
Grid: TypeAlias = tuple[int, int]


def choose_resize(stored: Grid, wanted: Grid, resize: Resize | None) -> Resize:
    """The scheme that carries weights from one patch grid to another: tiling wherever the sides are whole multiples.

    Raises:
        ConfigError: Tiling is asked for and the sides are no whole multiples, or the scheme is unknown.
    """
    whole = wanted[0] % stored[0] == 0 and wanted[1] % stored[1] == 0
    if resize is None:
        return "tile" if whole else "interpolate"
    check_choice("resize", resize, get_args(Resize))
    if resize == "tile" and not whole:
        raise ConfigError(
            f"resize='tile' repeats {stored[0]} x {stored[1]} patches a whole number of times, and the image has "
            f"{wanted[0]} x {wanted[1]}: choose multiples of the original image size, or resize='interpolate'."
        )
    return resize


def resized_config(stored: MixerConfig, wanted: MixerConfig, resize: Resize | None) -> MixerConfig:
    """Return ``wanted`` with the token-mixing width that the weights of ``stored`` have on its grid.

    Tiling K times makes it K times as wide, interpolation keeps it.

    Args:
        stored: The model that the weights are for.
        wanted: The model asked for; its ``tokens_mlp_dim`` is either that of ``stored``, or the outcome.
        resize: How to carry them; None tiles wherever the sides are whole multiples.

    Raises:
        ConfigError: Tiling is impossible, or ``tokens_mlp_dim`` is neither.
    """
    width = stored.tokens_mlp_dim
    if choose_resize(stored.grid_size, wanted.grid_size, resize) == "tile":
        width *= wanted.num_tokens // stored.num_tokens
    if wanted.tokens_mlp_dim not in (stored.tokens_mlp_dim, width):
        raise ConfigError(
            f"tokens_mlp_dim={wanted.tokens_mlp_dim}: the token-mixing width is {stored.tokens_mlp_dim} at the native "
            f"image size and {width} at this one; leave tokens_mlp_dim out, or create the model without weights and "
            "without resize."
        )
    return dataclasses.replace(wanted, tokens_mlp_dim=width)


def resize_token_mlp(tensors: Mapping[str, Tensor], stored: Grid, wanted: Grid, resize: Resize) -> dict[str, Tensor]:
    """Carry one layer's token-mixing MLP to another grid.

    Args:
        tensors: ``fc1.weight`` (D, S), ``fc1.bias`` (D,), ``fc2.weight`` (S, D) and ``fc2.bias`` (S,), tokens in
            raster order.
        stored: Patches down and across that the weights are for.
        wanted: Patches down and across of the new grid; whole multiples for tiling.
        resize: How to carry them.

    Returns:
        The same four on the new grid, of the same type.
    """
    carry = _tile if resize == "tile" else _interpolate
    return carry(tensors["fc1.weight"], tensors["fc1.bias"], tensors["fc2.weight"], tensors["fc2.bias"], stored, wanted)


@torch.no_grad()
def resize_module(mlp: nn.Module, stored: Grid, wanted: Grid, resize: Resize | None) -> None:
    """Carry the parameters of a token-mixing MLP (linear layers ``fc1`` and ``fc2``) to another grid, in place."""
    if stored == wanted:
        return
    state = dict(mlp.named_parameters())
    carried_state = resize_token_mlp(state, stored, wanted, choose_resize(stored, wanted, resize))
    for name, old in state.items():
        layer_name, _, kind = name.partition(".")
        layer = mlp.get_submodule(layer_name)
        setattr(layer, kind, nn.Parameter(carried_state[name], requires_grad=old.requires_grad))
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape


def _tile(w1_DS: Tensor, b1_D: Tensor, w2_SD: Tensor, b2_S: Tensor, stored: Grid, wanted: Grid) -> dict[str, Tensor]:
    """K copies of the MLP, each on its own contiguous tile of the image: block-diagonal with tokens sorted by tile."""
    (height, width), (rows, columns) = stored, wanted
    across = columns // width
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    tile = ((y // height) * across + x // width).flatten()  # which copy sees token r of the new grid, ...
    place = ((y % height) * width + x % width).flatten()  # ... and which of the S tokens it is there
    copies, hidden, tokens = (rows // height) * across, w1_DS.shape[0], rows * columns
    token = torch.arange(tokens)
    new_w1 = w1_DS.new_zeros(copies, hidden, tokens)
    new_w1[tile, :, token] = w1_DS.t()[place]
    new_w2 = w2_SD.new_zeros(tokens, copies, hidden)
    new_w2[token, tile] = w2_SD[place]
    return {
        "fc1.weight": new_w1.flatten(0, 1),
        "fc1.bias": b1_D.repeat(copies),
        "fc2.weight": new_w2.flatten(1),
        "fc2.bias": b2_S[place],
    }


def _interpolate(
    w1_DS: Tensor, b1_D: Tensor, w2_SD: Tensor, b2_S: Tensor, stored: Grid, wanted: Grid
) -> dict[str, Tensor]:
    """Resample every map over the grid; W1 is rescaled by S / S' so that sums over tokens keep their size."""
    scale = (stored[0] * stored[1]) / (wanted[0] * wanted[1])
    return {
        "fc1.weight": _resample(w1_DS, stored, wanted, scale),
        "fc1.bias": b1_D,
        "fc2.weight": _resample(w2_SD.t(), stored, wanted).t().contiguous(),
        "fc2.bias": _resample(b2_S[None], stored, wanted)[0],
    }


def _resample(maps: Tensor, stored: Grid, wanted: Grid, scale: float = 1.0) -> Tensor:
    """Bicubic resampling of maps (M, S) -> (M, S'), antialiased when shrinking, in float32 at least."""
    precise = maps.to(torch.promote_types(maps.dtype, torch.float32))
    images = precise.reshape(-1, 1, *stored)
    resampled = interpolate(images, size=wanted, mode="bicubic", antialias=True, align_corners=False)
    return (resampled.flatten(1) * scale).to(maps.dtype)
