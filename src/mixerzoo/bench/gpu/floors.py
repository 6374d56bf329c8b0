"""How fast an operation could be on a card whose rates are known.

Legend: N images, S tokens, C channels, H hidden width. A unit is one of the two products of a branch: 2 N S C H
operations. An operation is a sequence of phases; a phase takes as long as the slowest of its products at the rate of a
large product, its bytes to memory at the rate of a copy, its bytes through the L2 cache at the rate of a copy there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from mixerzoo.config import MixerConfig

_BLOCK = 128  # channels for which a program of the fused token mixing streams all weights once
_BYTES = 2  # bfloat16 and float16


@dataclass(frozen=True)
class Phase:
    """One pass over the data.

    Attributes:
        operations: Floating-point operations of its products.
        memory: Bytes that must go to or come from memory.
        l2: Bytes that go through the L2 cache.
        numerics: How the products run: a name among the rates.
    """

    operations: float
    memory: float
    l2: float = 0.0
    numerics: str = "bfloat16"


def token_phases(images: int, shape: Sequence[int], training: bool) -> list[Phase]:
    """Token mixing in one kernel after a pass for the row statistics.

    Every (image, block of 128 channels) streams both padded weights through the L2 cache; x is read twice there, and
    the result written once. The backward pass need not recompute: four units; it reads x and the gradient, writes one.
    """
    tokens, channels, hidden = shape
    from mixerzoo.kernels.token_tiles import MAX_TOKENS, hidden_chunk, padded_tokens

    x = images * tokens * channels * _BYTES
    unit = 2.0 * images * prod(shape)
    padded = (padded_tokens(tokens) if tokens <= MAX_TOKENS else tokens) * (hidden + -hidden % hidden_chunk(hidden))
    streamed = images * -(-channels // _BLOCK) * 2 * padded * _BYTES
    weights = 2 * tokens * hidden * _BYTES
    forward = [Phase(0.0, x), Phase(2 * unit, 2 * x + weights, streamed + 3 * x)]
    return [*forward, Phase(4 * unit, 3 * x + 2 * weights, streamed + 4 * x)] if training else forward


def channel_phases(images: int, shape: Sequence[int], training: bool) -> list[Phase]:
    """Channel mixing: LayerNorm, then a product with GELU and one with the residual in its epilogue.

    The backward pass has two products for activations (GELU's gradient in the first one's epilogue, which reads what
    GELU was applied to and writes its gradient and GELU again), two for weights, and LayerNorm's.
    """
    tokens, channels, hidden = shape
    x, wide = images * tokens * channels * _BYTES, images * tokens * hidden * _BYTES
    unit, weight = 2.0 * images * prod(shape), channels * hidden * _BYTES
    saved = wide if training else 0
    forward = [Phase(0.0, 2 * x), Phase(unit, x + wide + saved + weight), Phase(unit, wide + 2 * x + weight)]
    if not training:
        return forward
    return [
        *forward,
        Phase(unit, x + 3 * wide + weight),
        Phase(unit, wide + x + weight),
        Phase(2 * unit, 2 * wide + 2 * x + 2 * weight),
        Phase(0.0, 4 * x),
    ]


def kernel_phases(kernel: str, images: int, shape: Sequence[int]) -> list[Phase]:
    """One kernel on its own, with what it recomputes; ``token_weights`` stands for its two launches."""
    tokens, channels, _ = shape
    x = images * tokens * channels * _BYTES
    unit = 2.0 * images * prod(shape)
    if kernel == "token_forward":
        return token_phases(images, shape, False)[1:]
    if kernel == "token_input":
        return [Phase(3 * unit, 3 * x, token_phases(images, shape, False)[1].l2)]
    if kernel == "token_weights":
        return [Phase(3 * unit, 2 * x), Phase(2 * unit, 2 * x)]
    if kernel == "linear_gelu_alone":
        return channel_phases(images, shape, False)[1:2]
    forward = channel_phases(images, shape, True)
    return [forward[{"linear_gelu": 1, "linear_residual": 2, "linear_gradient": 3}[kernel]]]


def phases_of(op: str, images: int, shape: Sequence[int], training: bool) -> list[Phase]:
    """Phases of ``"token_mlp"`` or ``"channel_mlp"``."""
    return (token_phases if op == "token_mlp" else channel_phases)(images, shape, training)


def quantised_channel_phases(images: int, shape: Sequence[int]) -> list[Phase]:
    """Channel mixing with products of FP8 operands; quantisation is in LayerNorm and in the first epilogue."""
    tokens, channels, hidden = shape
    x, wide = images * tokens * channels * _BYTES, images * tokens * hidden
    unit, weight = 2.0 * images * prod(shape), channels * hidden
    return [
        Phase(0.0, x + x / _BYTES),
        Phase(unit, x / _BYTES + wide + weight, numerics="fp8"),
        Phase(unit, wide + 2 * x + weight, numerics="fp8"),
    ]


def model_phases(images: int, config: MixerConfig, quantised: bool = False) -> list[Phase]:
    """A whole model's inference from float32 images to logits.

    Args:
        images: N.
        config: Sizes.
        quantised: Whether the products of channel mixing run in FP8.
    """
    tokens, channels = config.num_tokens, config.embed_dim
    height, width = config.image_hw
    x, pixels = images * tokens * channels * _BYTES, images * config.in_chans * height * width * 4
    patch = config.in_chans * config.patch_size**2
    wide = (tokens, channels, config.channels_mlp_dim)
    channel = quantised_channel_phases(images, wide) if quantised else channel_phases(images, wide, False)
    block = [*token_phases(images, (tokens, channels, config.tokens_mlp_dim), False), *channel]
    stem = Phase(2.0 * images * tokens * channels * patch, pixels + x + channels * patch * _BYTES)
    head = Phase(2.0 * images * channels * config.num_classes, x + channels * config.num_classes * _BYTES)
    return [stem, *block * config.depth, head]


def floor(phases: Sequence[Phase], rates: Mapping[str, float | None]) -> float | None:
    """Microseconds that the phases take at best; None without rates.

    Args:
        phases: One after the other.
        rates: As :func:`mixerzoo.bench.gpu.ceilings.measure` returns them.
    """
    total = 0.0
    for phase in phases:
        products, copy, l2 = rates.get(phase.numerics), rates.get("copy"), rates.get("l2")
        if products is None or copy is None or l2 is None:
            return None
        total += max(phase.operations / products, phase.memory / copy, phase.l2 / l2)
    return total / 1e6


def amounts(phases: Sequence[Phase]) -> dict[str, Any]:
    """Operations and bytes counted, as figures to report."""
    return {
        "operations": sum(phase.operations for phase in phases),
        "memory bytes": sum(phase.memory for phase in phases),
        "L2 bytes": sum(phase.l2 for phase in phases),
    }
