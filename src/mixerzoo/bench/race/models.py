"""What all contenders of a race share: weights, images, and the logits that they ought to compute.

The weights are random, because speed does not depend on them, but of realistic scale, and no bias is zero and no
LayerNorm the identity, so that a contender that leaves one out computes something visibly different.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from mixerzoo.bench.race.terms import Task
from mixerzoo.config import PRESETS, MixerConfig
from mixerzoo.factory import create_model
from mixerzoo.model import Mixer

WEIGHTS = "weights.safetensors"
REFERENCE = "reference.safetensors"

_CHUNK = 32  # images of the reference that are computed at a time
_CALIBRATION = 16  # images at least
_COARSE = 4  # side of the pattern


def config_of(model: str) -> MixerConfig:
    """A variant with the GELU that timm has, so that all contenders compute the same function."""
    return replace(PRESETS[model], act="erf")


def random_state(model: str) -> dict[str, Tensor]:
    """Random parameters in float32, the same ones every time."""
    generator = torch.Generator().manual_seed(2105)
    state = {}
    for name, empty in Mixer.from_config(config_of(model), device="meta").state_dict().items():
        noise = torch.randn(empty.shape, generator=generator)
        if noise.ndim > 1:
            state[name] = noise * noise[0].numel() ** -0.5
        else:
            state[name] = 0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return state


def random_images(model: str, count: int, seed: int) -> Tensor:
    """Images (N, channels, H, W) in float32: a colour and a coarse pattern, with noise in every pixel.

    Noise alone would give all images nearly the same pooled features, and a contender that mixes images up would pass.
    """
    config = config_of(model)
    generator = torch.Generator().manual_seed(seed)

    def normal(height: int, width: int) -> Tensor:
        return torch.randn(count, config.in_chans, height, width, generator=generator)

    pattern = nn.functional.interpolate(normal(_COARSE, _COARSE), config.image_hw, mode="bilinear")
    return 2.0 * normal(1, 1) + 3.0 * pattern + 0.5 * normal(*config.image_hw)


def calibration_images(task: Task) -> list[Tensor]:
    """Batches for quantisation; none of them is raced."""
    batches = max(_CALIBRATION // task.batch_size, 2)
    return [random_images(task.model, task.batch_size, 10_000 + seed) for seed in range(batches)]


def our_model(task: Task) -> Mixer:
    """Our model in float32 on the task's device."""
    path = task.folder / WEIGHTS
    model = create_model(task.model, checkpoint_path=path, act="erf", device=task.device)
    assert isinstance(model, Mixer)
    return model.eval()


def timm_model(task: Task) -> nn.Module:
    """timm's ``MlpMixer`` in float32 on the task's device: by its name, or at its sizes where timm has no name."""
    path = task.folder / WEIGHTS
    name = f"{task.model}_224"
    if timm.is_model(name):
        model: nn.Module = timm.create_model(name, checkpoint_path=str(path))
        return model.eval().to(task.device)
    config = config_of(task.model)
    width = config.embed_dim
    model = MlpMixer(
        num_classes=config.num_classes,
        img_size=config.image_hw,
        patch_size=config.patch_size,
        num_blocks=config.depth,
        embed_dim=width,
        mlp_ratio=(config.tokens_mlp_dim / width, config.channels_mlp_dim / width),
    )
    model.load_state_dict(load_file(path))
    return model.eval().to(task.device)


def write_common(task: Task) -> None:
    """Write the weights, and the logits of the first batch by timm's eager model in float32."""
    save_file(random_state(task.model), task.folder / WEIGHTS)
    model = timm_model(task)
    with torch.inference_mode():
        chunks = torch.split(random_images(task.model, task.batch_size, seed=0), _CHUNK)
        logits = torch.cat([model(chunk.to(task.device)).cpu() for chunk in chunks])
    save_file({"logits": logits}, task.folder / REFERENCE)


def read_reference(folder: Path) -> Tensor:
    """The logits that :func:`write_common` wrote."""
    return load_file(folder / REFERENCE)["logits"]
