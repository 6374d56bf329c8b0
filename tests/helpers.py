"""Small things that several tests need."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

TINY = {
    "img_size": 32,
    "patch_size": 16,
    "embed_dim": 16,
    "depth": 2,
    "tokens_mlp_dim": 8,
    "channels_mlp_dim": 64,
    "num_classes": 5,
}
"""A Mixer that is built in no time; timm can express it (MLP ratios 0.5 and 4)."""


def randomise(model, scale=1.0):
    """Give every parameter a random value, head and LayerNorms included, so that nothing hides behind zeros or ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise * scale)
            else:
                parameter.copy_(noise * scale * parameter[0].numel() ** -0.5)
    return model


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_state(model, path):
    save_file(state_of(model), path)
    return Path(path)


def relative_error(actual, reference):
    reference = torch.as_tensor(reference, dtype=torch.float64)
    return ((actual.double() - reference).abs().max() / reference.abs().max()).item()


def run_cli(*args, cwd=None, timeout=120, **env):
    """Run the command line in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "mixerzoo", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | env,
    )
