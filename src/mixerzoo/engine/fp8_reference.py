"""FP8 channel mixing as arithmetic: what the ``fp8`` program's kernels compute, in plain PyTorch.

Legend: N images, S tokens, C channels, H and D hidden widths of token and channel mixing, HP and SP padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mixerzoo.config import MixerConfig
from mixerzoo.engine.folding import gelu, normalise
from mixerzoo.engine.packed import PackedMixer
from mixerzoo.engine.program import Request
from mixerzoo.kernels.fp8_format import FP8, LARGEST, hidden_factors, quantise_rows, row_factor


class Fp8Layer(NamedTuple):
    """One layer.

    Attributes:
        gamma1: LayerNorm's scale before token mixing (C,).
        beta1: Its shift (C,).
        w1: First token-mixing weight (HP, SP), zeros beyond (H, S).
        b1: Its bias (HP,).
        w2: Second token-mixing weight (SP, HP), zeros beyond (S, H).
        w3: First channel-mixing weight (D, C), FP8.
        scale3: What its products with FP8 rows are multiplied with (D,), float32.
        b3: Its bias (D,), float32.
        factor3: What GELU's results are multiplied with to become FP8 (D,), float32.
        w4: Second channel-mixing weight (C, D), FP8, divided by ``factor3``.
        scale4: What its products are multiplied with (C,), float32.
        b4: Its bias (C,), float32.
    """

    gamma1: Tensor
    beta1: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    w3: Tensor
    scale3: Tensor
    b3: Tensor
    factor3: Tensor
    w4: Tensor
    scale4: Tensor
    b4: Tensor


def pack_channels(w3: Tensor, b3: Tensor, w4: Tensor, b4: Tensor) -> tuple[Tensor, ...]:
    """Channel mixing's tensors, float32, as the fields of :class:`Fp8Layer` from ``w3`` on."""
    numbers, scale = quantise_rows(w3)
    factor = hidden_factors(w3, b3)
    return numbers, scale / row_factor(w3.shape[1]), b3, factor, *quantise_rows(w4 / factor), b4


def channel_mlp(x: Tensor, layer: Fp8Layer, config: MixerConfig) -> Tensor:
    """``x + W4 gelu(W3 normalised(x) + b3) + b4`` with FP8 products, summed in float32.

    Args:
        x: (N, S, C).
        layer: Its channel mixing.
        config: GELU's flavour, and LayerNorm's epsilon.

    Returns:
        The result as ``x``.
    """
    y = (normalise(x.float(), config.norm_eps) * row_factor(x.shape[-1])).to(FP8).float()
    u = F.linear(y, layer.w3.float()) * layer.scale3 + layer.b3
    z = (gelu(u, config) * layer.factor3).clamp(-LARGEST, LARGEST).to(FP8).float()
    mixed = F.linear(z, layer.w4.float()) * layer.scale4 + layer.b4
    return (x.float() + mixed).to(x.dtype)


def token_mlp(x: Tensor, layer: Fp8Layer, config: MixerConfig) -> Tensor:
    """``x + W2 gelu(W1 LayerNorm(x) + b1)`` rounded where the fused kernel rounds, summed in float32.

    Args:
        x: (N, S, C).
        layer: Its token mixing.
        config: GELU's flavour, and LayerNorm's epsilon.

    Returns:
        The result as ``x``.
    """
    tokens, dtype = x.shape[1], x.dtype
    y = (normalise(x.float(), config.norm_eps) * layer.gamma1.float() + layer.beta1.float()).to(dtype).float()
    z = gelu(F.linear(y.mT, layer.w1[:, :tokens].float(), layer.b1.float()), config).to(dtype).float()
    return (x.float() + F.linear(z, layer.w2[:tokens].float()).mT).to(dtype)


def emulate(tensors: Mapping[str, Tensor], request: Request) -> PackedMixer:
    """The whole model on what the ``fp8`` program packed, on any device.

    Args:
        tensors: What the program packed.
        request: For what.
    """
    config = request.config

    def mix(x_NSC: Tensor, layer: Fp8Layer) -> Tensor:
        return channel_mlp(token_mlp(x_NSC, layer, config), layer, config)

    return PackedMixer(tensors, request, Fp8Layer, mix)
