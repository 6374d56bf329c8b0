"""Sharpness-aware minimisation (SAM), and its variant that also closes the surrogate gap (GSAM).

Sources: Foret et al. 2021 (arXiv 2010.01412) for SAM; Zhuang et al. 2022 (arXiv 2203.08065, algorithm 1) and
big_vision's ``big_vision/trainers/proj/gsam/gsam.py`` for GSAM.

A step has two passes over the same images. With w the weights, g the gradient at w and g_p that at the perturbed point,

    climb      w_p = w + rho g / |g|
    SAM        descend along g_p
    GSAM       descend along g_p - alpha g_o,   g_o = g - (g . g_p / |g_p|^2) g_p, the part of g orthogonal to g_p

GSAM's radius rho follows the learning rate from ``sam_rho`` at its peak down to ``sam_rho_min`` at its end. Norms and
products run over all parameters as one vector, and over all shards of them. One difference: there every worker climbs
along the gradient of its own images, here all climb along that of the global batch, so that a result does not depend
on the number of processes; a radius that suited 64 small batches may have to be larger here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from mixerzoo.errors import ConfigError
from mixerzoo.train.recipe import Recipe


class Sam:
    """The two passes of a sharpness-aware step, for any optimiser.

    ``backward(); climb(lr_ratio); zero_grad(); backward(); descend()``, and then the optimiser's step. Between the two
    calls it holds one more copy of the weights, and for GSAM one of the gradients.

    Args:
        parameters: What is trained; those without a gradient stay where they are. Shards (FSDP2) are welcome.
        recipe: ``sam_rho``, ``sam_rho_min``, ``gsam_alpha`` and ``min_lr_ratio`` are used.

    Raises:
        ConfigError: ``sam_rho`` is 0.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe):
        if not recipe.sam_rho:
            raise ConfigError("sam_rho=0 climbs nowhere: choose a radius above 0, or train without Sam.")
        self.parameters = list(parameters)
        self.recipe = recipe
        self._climbed: list[nn.Parameter] = []
        self._weights: list[Tensor] = []
        self._gradients: dict[nn.Parameter, Tensor] = {}

    def radius(self, lr_ratio: float) -> float:
        """The radius of a step whose learning rate is ``lr_ratio`` of the peak, never outside the recipe's two."""
        largest, lowest = self.recipe.sam_rho, self.recipe.min_lr_ratio
        smallest = self.recipe.sam_rho_min or largest
        if lowest >= 1.0:
            return largest
        place = min(max((lr_ratio - lowest) / (1.0 - lowest), 0.0), 1.0)
        return smallest + (largest - smallest) * place

    @torch.no_grad()
    def climb(self, lr_ratio: float) -> None:
        """Move the weights up the gradient of the global batch that is in ``.grad``; a zero gradient moves nothing.

        Args:
            lr_ratio: Learning rate of this step as a fraction of the peak.
        """
        self._climbed = [parameter for parameter in self.parameters if parameter.grad is not None]
        weights, gradients = _local(self._climbed), _gradients(self._climbed)
        self._weights = [weight.clone() for weight in weights]
        if self.recipe.gsam_alpha:  # a copy: DDP writes the next gradients to the same memory
            self._gradients = {p: p.grad.clone() for p in self._climbed if p.grad is not None}
        if not gradients:
            return
        norm = _inner(self._climbed, gradients, gradients).sqrt()
        scale = torch.where(norm == 0, 0.0, self.radius(lr_ratio) / norm)
        torch._foreach_add_(weights, torch._foreach_mul(gradients, scale))

    @torch.no_grad()
    def descend(self) -> None:
        """Put the weights back, bit for bit, and leave in ``.grad`` the direction that the optimiser is to follow.

        Uses the gradient at the perturbed weights that is in ``.grad``.
        """
        if self._weights:
            torch._foreach_copy_(_local(self._climbed), self._weights)
        if self.recipe.gsam_alpha:
            self._close_gap()
        self._climbed, self._weights, self._gradients = [], [], {}

    def _close_gap(self) -> None:
        """``g_p <- g_p - alpha g_o``, as ``(1 + alpha c) g_p - alpha g`` with c the coefficient of g along g_p."""
        both = [p for p in self._climbed if p.grad is not None]
        if not both:
            return
        perturbed, clean = _gradients(both), [_shard(self._gradients[p]) for p in both]
        square = _inner(both, perturbed, perturbed)
        along = _inner(both, clean, perturbed) / torch.where(square == 0, 1.0, square)
        alpha = torch.where(square == 0, square, self.recipe.gsam_alpha)  # nothing is orthogonal to no direction
        torch._foreach_mul_(perturbed, 1.0 + alpha * along)
        torch._foreach_sub_(perturbed, torch._foreach_mul(clean, alpha))


def _shard(tensor: Tensor) -> Tensor:
    """This process's part of a tensor: the same memory, so that in-place changes reach the whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [_shard(tensor) for tensor in tensors]


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [_shard(p.grad) for p in parameters if p.grad is not None]


def _inner(parameters: Sequence[Tensor], ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The inner product of two vectors that are given as one local tensor a parameter: a scalar, over all shards.

    Args:
        parameters: Tell how the tensors are spread over processes.
        ones: Local parts of the one vector.
        others: Local parts of the other.
    """
    groups: dict[tuple[Any, ...] | None, list[Tensor]] = {}  # one sum, and one exchange, for each kind of spread
    for parameter, one, other in zip(parameters, ones, others, strict=True):
        spread = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
        groups.setdefault(spread, []).append(torch.dot(one.flatten(), other.flatten()))
    sums = []
    for spread, products in groups.items():
        total = torch.stack(products).sum()
        if spread is not None:
            mesh, placements = spread
            parts = [Partial() if isinstance(placement, Shard) else Replicate() for placement in placements]
            total = DTensor.from_local(total, mesh, parts, run_check=False).full_tensor()
        sums.append(total)
    return torch.stack(sums).sum()
