"""Are the weights in the cache whole, and does the model compute what it should?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.models import PretrainedCfg

from mixerzoo import reference
from mixerzoo.errors import WeightsError
from mixerzoo.factory import WeightSource, create_model
from mixerzoo.model import Mixer
from mixerzoo.weights.files import require_finite
from mixerzoo.weights.stored import StoredFile, stored_file

TOLERANCE = 1e-5
"""Largest allowed difference of a float32 model from the float64 reference, relative to the largest value."""


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        name: The weights.
        file: The file in the cache, its hash, and the hash that it should have.
        act: GELU flavour.
        block_error: Largest relative difference of any layer's output from the float64 reference.
        logits_error: The same of the logits.
    """

    name: str
    file: StoredFile
    act: str
    block_error: float
    logits_error: float

    @property
    def problem(self) -> str | None:
        """What is wrong, in one sentence; None if nothing is."""
        if self.file.expected not in (None, self.file.sha256):
            return (
                f"{self.file.path} has SHA-256 {self.file.sha256}, {self.file.authority} says {self.file.expected}: "
                "delete the file and load the model again."
            )
        if self.file.origin_known not in (None, self.file.origin_sha256):
            return (
                f"{self.file.origin} has SHA-256 {self.file.origin_sha256}, this version of mixerzoo knows it with "
                f"{self.file.origin_known}: the file there was replaced; update mixerzoo, or report it."
            )
        if not all(error <= TOLERANCE for error in (self.block_error, self.logits_error)):  # NaN too
            return (
                f"{self.name} differs from the float64 reference by {self.block_error:.1e} (layers) and "
                f"{self.logits_error:.1e} (logits), more than {TOLERANCE:g}: a fault of mixerzoo or of the weights; "
                "please report it."
            )
        return None


def verify(name: str, *, source: WeightSource | None = None, cache_dir: str | Path | None = None) -> Verification:
    """Hash the weights in the cache (downloading them first if need be), load them, and compare with float64.

    Args:
        name: Any name with weights that :func:`mixerzoo.create_model` takes.
        source: As for :func:`mixerzoo.create_model`.
        cache_dir: As for :func:`mixerzoo.create_model`.

    Raises:
        ModelNameError: There is no such name.
        WeightsError: The weights cannot be had, do not fit, or are not finite.
    """
    model = create_model(name, pretrained=True, source=source, cache_dir=cache_dir).eval()
    assert isinstance(model, Mixer)
    file = stored_file(PretrainedCfg(**model.pretrained_cfg), cache_dir)
    if file is None:
        raise WeightsError(f"The weights of {name} vanished from the cache: run the command again.")
    require_finite(model.state_dict(), file.path)
    blocks, logits = _errors(model)
    return Verification(name, file, model.config.act, blocks, logits)


@torch.no_grad()
def _errors(model: Mixer) -> tuple[float, float]:
    config = model.config
    size = config.in_chans * config.image_hw[0] * config.image_hw[1]
    waves = np.sin(0.37 * np.arange(size) ** 1.1)  # fixed, without structure that a patch could hide
    images = torch.from_numpy(waves).reshape(1, config.in_chans, *config.image_hw)
    tokens, outputs = model.forward_intermediates(images.float(), output_fmt="NLC")
    logits = model.forward_head(tokens)
    expected, expected_logits = reference.mixer(
        model.state_dict(),
        images.float().numpy(),
        patch=config.patch_size,
        act=config.act,
        eps=config.norm_eps,
        pool=config.global_pool == "avg",
    )
    blocks = [_difference(a, b) for a, b in zip(outputs, expected, strict=True)]
    return float(np.max(blocks)), _difference(logits, expected_logits)  # np.max: NaN stays NaN


def _difference(actual: torch.Tensor, expected: np.ndarray) -> float:
    """Largest difference relative to the largest value; NaN where one of them is not finite."""
    if not (torch.isfinite(actual).all() and np.isfinite(expected).all()):
        return math.nan
    scale = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)  # a head of zeros gives zeros
    return float(np.abs(actual.double().numpy() - expected).max()) / scale
