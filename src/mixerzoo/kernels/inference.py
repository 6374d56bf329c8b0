"""Both halves of a Mixer layer for inference, on weights that were packed once; the stream is updated in place.

Legend: N images, S tokens, C channels, H and D hidden widths of token and channel mixing, HP and SP padded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixerzoo.config import Gelu
from mixerzoo.kernels import layer_norm, linear, linear_tiles, token_mlp
from mixerzoo.kernels.branches import programs_at_once
from mixerzoo.kernels.fp8_format import FP8, row_factor
from mixerzoo.kernels.launch import card_of
from mixerzoo.kernels.token_tiles import FORWARD


class TokenWeights(NamedTuple):
    """Token mixing, all of the products' dtype: LayerNorm's scale and shift (C,); what ``token_mlp.pack`` returns."""

    gamma1: Tensor
    beta1: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor


class ChannelWeights(NamedTuple):
    """Channel mixing behind a LayerNorm without scale and shift, all of the products' dtype but the float32 ``total3``.

    Attributes:
        w3: (D, C).
        total3: Row sums of ``w3`` as it is, rounded (D,).
        b3: (D,).
        w4: (C, D).
        b4: (C,).
    """

    w3: Tensor
    total3: Tensor
    b3: Tensor
    w4: Tensor
    b4: Tensor


class Fp8ChannelWeights(NamedTuple):
    """Channel mixing in FP8, everything but the weights float32; see :mod:`mixerzoo.engine.fp8_reference`.

    Attributes:
        w3: (D, C), FP8.
        scale3: (D,).
        b3: (D,).
        factor3: (D,).
        w4: (C, D), FP8.
        scale4: (C,).
        b4: (C,).
    """

    w3: Tensor
    scale3: Tensor
    b3: Tensor
    factor3: Tensor
    w4: Tensor
    scale4: Tensor
    b4: Tensor


def mix_tokens(x: Tensor, weights: TokenWeights, eps: float, act: Gelu, more: Tensor | None = None) -> None:
    """``x += W2 gelu(W1 LayerNorm(x) + b1) + more``, without the last bias.

    Args:
        x: (N, S, C), contiguous.
        weights: Packed.
        eps: LayerNorm's.
        act: GELU flavour.
        more: One number for each channel (C,); None for 0.
    """
    card, (_, tokens, channels) = card_of(x.device), x.shape
    tile = FORWARD.choose(card, (tokens, channels, weights.w1.shape[0]), x.element_size(), act)
    assert tile is not None
    stats = layer_norm.row_stats(x, None, None, eps)
    programs = programs_at_once(card, tile, tokens)
    token_mlp.describe_forward(x, stats, weights[:2], weights[2:], None, None, x, act, tile, programs, more)()


def mix_channels(x: Tensor, weights: ChannelWeights, eps: float, act: Gelu) -> None:
    """``x += W4 gelu(W3 normalised(x) + b3) + b4``.

    Two-byte operands are multiplied as they are and normalised in the first product's epilogue; float32 ones first.

    Args:
        x: (N, S, C), contiguous.
        weights: Packed.
        eps: LayerNorm's.
        act: GELU flavour.
    """
    w3, total3, b3, w4, b4 = weights
    card, (hidden, channels) = card_of(x.device), w3.shape
    rows, size = x.numel() // channels, x.element_size()
    z = x.new_empty(*x.shape[:-1], hidden)
    tile = linear_tiles.inference_tile(card, rows, hidden, size, linear_tiles.inference_load(card, act))
    if x.dtype == torch.float32:
        y, _, _ = layer_norm.normalise(x, None, None, eps, x.dtype)
        linear.describe_linear_gelu(y, w3, b3, None, z, act, tile)()
    else:
        stats = layer_norm.row_stats(x, None, None, eps)
        linear.describe_normalised_gelu(x, stats, w3, total3, b3, z, act, tile)()
    tile = linear_tiles.inference_tile(card, rows, channels, size, linear_tiles.residual_load(card, size))
    linear.describe_linear_residual(z, w4, b4, x, None, x, tile)()


def mix_channels_cublaslt(x: Tensor, weights: ChannelWeights, eps: float) -> None:
    """``x += W4 gelu(W3 normalised(x - b4) + b3)`` by the library: for tokens to which ``b4`` was added before.

    Its product can add the residual or a bias, so the bias goes into the residual, and out of what is normalised. GELU
    is cuBLASLt's tanh flavour on CUDA; elsewhere the same call computes the other one.

    Args:
        x: (N, S, C), contiguous.
        weights: Packed.
        eps: LayerNorm's.
    """
    w3, _, b3, w4, b4 = weights
    y, (mean, rstd) = torch.empty_like(x), (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    layer_norm.describe_layer_norm(x, None, None, y, mean, rstd, eps, less=b4)()
    z = torch._addmm_activation(b3, y.flatten(0, 1), w3.t(), use_gelu=True)
    flat = x.view(-1, x.shape[-1])
    flat.addmm_(z, w4.t())


def mix_channels_fp8(x: Tensor, weights: Fp8ChannelWeights, eps: float, act: Gelu) -> None:
    """``x += W4 gelu(W3 normalised(x) + b3) + b4`` with FP8 products; each kernel writes what the next one multiplies.

    Args:
        x: (N, S, C), contiguous.
        weights: Packed.
        eps: LayerNorm's.
        act: GELU flavour.
    """
    w3, scale3, b3, factor3, w4, scale4, b4 = weights
    card, (hidden, channels) = card_of(x.device), w3.shape
    rows = x.numel() // channels
    y, z = (x.new_empty(*x.shape[:-1], width, dtype=FP8) for width in (channels, hidden))
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    layer_norm.describe_layer_norm(x, None, None, y, mean, rstd, eps, row_factor(channels))()
    tile = linear_tiles.inference_tile(card, rows, hidden, 1, linear_tiles.inference_load(card, act))
    linear.describe_fp8_gelu(y, w3, scale3, b3, factor3, z, act, tile)()
    tile = linear_tiles.inference_tile(card, rows, channels, 1, linear_tiles.residual_load(card, 1))
    linear.describe_linear_residual(z, w4, b4, x, None, x, tile, scale4)()
