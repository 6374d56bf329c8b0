"""Mixup and CutMix with the left neighbour in the global batch, drawn once a step.

timm's ``Mixup`` pairs the i-th image of a batch with the i-th from its end and draws from NumPy's global generator, so
its result depends on how a batch is cut over processes and on what else drew numbers. Here the global batch is a ring,
every image is mixed with the one on its left (big_vision's roll by one), and the draw is a function of seed and step.

Legend: M images of a micro-batch, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mixerzoo.data.source import seed_of
from mixerzoo.train.recipe import Recipe

_STREAM = 0x6D6978  # tells this use of (seed, step) from the others


@dataclass(frozen=True)
class Mix:
    """How one step mixes each image with its left neighbour.

    Attributes:
        weight: Share of an image's own pixels and label, in [0, 1].
        box: (top, bottom, left, right) in pixels of what CutMix takes from the neighbour; None for mixup.
    """

    weight: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(recipe: Recipe, step: int, image_hw: tuple[int, int]) -> Mix | None:
    """What the recipe mixes in a step: a function of its seed and the step, the same on every process.

    Mixup's weight is Beta(alpha, alpha), or 1 minus that if it is larger, so that an image keeps the larger share
    (big_vision's ``get_mixup``). CutMix draws the area left to an image from its own Beta, and a box of the image's
    aspect ratio around a random centre, cut at the border (Yun et al. 2019, arXiv 1905.04899). With both alphas, each
    step draws one of the two with equal probability.

    Args:
        recipe: ``mixup``, ``cutmix`` and ``seed`` are used.
        step: Number of the optimiser step.
        image_hw: Height and width of the images in pixels.

    Returns:
        None if the recipe mixes nothing.
    """
    if not recipe.mixup and not recipe.cutmix:
        return None
    generator = np.random.default_rng(seed_of(recipe.seed, step, _STREAM))
    cut = recipe.cutmix > 0 and (not recipe.mixup or generator.random() < 0.5)
    alpha = recipe.cutmix if cut else recipe.mixup
    weight = float(generator.beta(alpha, alpha))
    return _draw_box(generator, weight, image_hw) if cut else Mix(max(weight, 1.0 - weight))


def _draw_box(generator: np.random.Generator, weight: float, image_hw: tuple[int, int]) -> Mix:
    """A box of about ``1 - weight`` of the image; timm's ``rand_bbox`` would draw from NumPy's global generator."""
    spans = []
    for size in image_hw:
        length, centre = int(size * math.sqrt(1.0 - weight)), int(generator.integers(size))
        spans += [max(centre - length // 2, 0), min(centre + (length + 1) // 2, size)]
    top, bottom, left, right = spans
    taken = (bottom - top) * (right - left) / (image_hw[0] * image_hw[1])
    return Mix(1.0 - taken, (top, bottom, left, right))


def apply_mix(mix: Mix, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each row with the one before it; the result does not depend on how the global batch was divided.

    Args:
        mix: What to do, from :func:`draw_mix`.
        images: (M + 1, channels, height, width), row 0 being the left neighbour of row 1 in the ring; not changed.
        targets: (M + 1, K), of the same rows; not changed.

    Returns:
        Images (M, channels, height, width) and targets (M, K).
    """
    if mix.box is None:
        mixed = _blend(mix.weight, images)
    else:
        top, bottom, left, right = mix.box
        mixed = images[1:].clone()
        mixed[..., top:bottom, left:right] = images[:-1, ..., top:bottom, left:right]
    return mixed, _blend(mix.weight, targets)


def _blend(weight: float, rows: Tensor) -> Tensor:
    # three plain operations: a fused multiply-add rounds differently at the ends of a tensor
    return rows[1:] * weight + rows[:-1] * (1.0 - weight)
