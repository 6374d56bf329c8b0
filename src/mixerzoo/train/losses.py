"""Training targets and losses, computed in float32 (or float64) whatever type the logits have.

Legend: M images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from mixerzoo.train.recipe import Recipe

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def make_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Class probabilities of labels: 1 at the label, or with smoothing ``1 - smoothing`` plus every class's share.

    Args:
        labels: (M,) int64.
        num_classes: K.
        smoothing: Probability mass that is spread evenly over all classes, the label's included.

    Returns:
        (M, K) float32.
    """
    return one_hot(labels, num_classes).float() * (1.0 - smoothing) + smoothing / num_classes


def make_loss(recipe: Recipe) -> LossFunction:
    """The recipe's loss: logits (M, K) of any floating type and targets (M, K) -> mean over the M images.

    ``"softmax"`` is cross-entropy with class probabilities. ``"sigmoid"`` is the sum over classes of binary
    cross-entropies (big_vision's ``sigmoid_xent``).
    """
    return _softmax if recipe.loss == "softmax" else _sigmoid


def _softmax(logits: Tensor, targets: Tensor) -> Tensor:
    logits = _precise(logits)
    return cross_entropy(logits, targets.to(logits.dtype))


def _sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    logits = _precise(logits)
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum") / len(logits)


def _precise(logits: Tensor) -> Tensor:
    """float32 at least: autocast hands over bfloat16, in which a sum over a thousand classes keeps two digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
