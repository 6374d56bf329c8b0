"""MLP-Mixer in NumPy float64, written from the paper's equations; shares no code with the model.

What :mod:`mixerzoo.model` and every faster way to run it are measured against, in the tests and by ``mixerzoo verify``.

Source: Tolstikhin et al. 2021 (arXiv 2105.01601), equation 1; Hendrycks and Gimpel 2016 (arXiv 1606.08415) for GELU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array, act: Literal["tanh", "erf"]) -> Array:
    """GELU, exact (``"erf"``) or by the tanh approximation; any shape."""
    if act == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Normalise the last axis."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def mixer(
    state: Mapping[str, Tensor],
    images: Any,
    *,
    patch: int,
    act: Literal["tanh", "erf"],
    eps: float = 1e-6,
    pool: bool = True,
) -> tuple[list[Array], Array]:
    """Run a whole Mixer.

    Args:
        state: Parameters under timm's names.
        images: (N, channels, H, W); pixels beyond the last whole patch are ignored.
        patch: Side of a patch in pixels.
        act: GELU flavour.
        eps: Added to the variance in every LayerNorm.
        pool: Average the tokens before the head.

    Returns:
        The output of every layer (N, S, C), and the logits (N, classes), or the pooled features (N, C) of a model
        without a head; one for each token (N, S, ...) without pooling.
    """

    def parameter(name: str) -> Array:
        return np.asarray(state[name].detach().cpu().double().numpy())

    def linear(x: Array, name: str) -> Array:
        return x @ parameter(f"{name}.weight").T + parameter(f"{name}.bias")

    def mlp(x: Array, name: str) -> Array:
        return linear(gelu(linear(x, f"{name}.fc1"), act), f"{name}.fc2")

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, parameter(f"{name}.weight"), parameter(f"{name}.bias"), eps)

    pixels = np.asarray(images, dtype=np.float64)
    n, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    tokens = np.empty((n, rows * columns, channels * patch * patch))
    for r in range(rows):
        for c in range(columns):
            tile = pixels[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            tokens[:, r * columns + c] = tile.reshape(n, -1)
    kernel = parameter("stem.proj.weight")
    x: Array = tokens @ kernel.reshape(kernel.shape[0], -1).T + parameter("stem.proj.bias")
    outputs = []
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth):
        block = f"blocks.{i}"
        mixed = mlp(np.swapaxes(norm(x, f"{block}.norm1"), 1, 2), f"{block}.mlp_tokens")
        x = x + np.swapaxes(mixed, 1, 2)
        x = x + mlp(norm(x, f"{block}.norm2"), f"{block}.mlp_channels")
        outputs.append(x)
    pooled = norm(x, "norm")
    if pool:
        pooled = pooled.mean(axis=1)
    return outputs, linear(pooled, "head") if "head.weight" in state else pooled
