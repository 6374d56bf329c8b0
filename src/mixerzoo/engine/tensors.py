"""A folded model as named tensors, and back: what programs pack and what is saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mixerzoo.engine.folding import FoldedMixer

Layer = TypeVar("Layer")


def named(folded: FoldedMixer) -> dict[str, Tensor]:
    """``stem.weight``, ``layers.0.w1``, ...: every tensor of a folded model."""
    tensors = {"stem.weight": folded.stem_weight, "stem.bias": folded.stem_bias}
    for i, layer in enumerate(folded.layers):
        tensors |= named_layer(i, layer)
    return tensors | tail(folded)


def tail(folded: FoldedMixer) -> dict[str, Tensor]:
    """The tensors behind the last layer: final LayerNorm and head."""
    tensors = {
        "norm.weight": folded.norm_weight,
        "norm.bias": folded.norm_bias,
        "head.weight": folded.head_weight,
        "head.bias": folded.head_bias,
        "plain_head.weight": folded.plain_head_weight,
        "plain_head.bias": folded.plain_head_bias,
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def classify(features: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Features normalised without scale and shift (..., C) to logits (..., classes), or to features without a head."""
    if "head.weight" in tensors:
        return F.linear(features, tensors["head.weight"], tensors["head.bias"])
    return features * tensors["norm.weight"] + tensors["norm.bias"]


def named_layer(index: int, layer: Any) -> dict[str, Tensor]:
    """The fields of one layer's named tuple, by name."""
    return {f"layers.{index}.{field}": tensor for field, tensor in layer._asdict().items()}


def layers_of(tensors: Mapping[str, Tensor], depth: int, kind: type[Layer]) -> list[Layer]:
    """Every layer as a named tuple of the given kind."""
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    return [kind(*(tensors[f"layers.{i}.{field}"] for field in fields)) for i in range(depth)]
