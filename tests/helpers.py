"""Small things that several tests need."""

import json
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


TINY_TIMM_ARGS = {
    "img_size": 32,
    "num_blocks": 2,
    "embed_dim": 16,
    "mlp_ratio": [0.5, 4.0],
    "patch_size": 16,
}


def write_folder(path, model, *, architecture="mixer_b16_224", tag="someones", **extra):
    """A folder as timm saves it, with a tiny Mixer in it."""
    path.mkdir()
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": TINY_TIMM_ARGS,
        "pretrained_cfg": {
            "tag": tag,
            "custom_load": False,
            "input_size": [model.in_chans, *model.config.image_hw],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.5, 0.5, 0.5],
            "num_classes": model.num_classes,
            "pool_size": None,
            "first_conv": "stem.proj",
            "classifier": "head",
        },
    } | extra
    (path / "config.json").write_text(json.dumps(config))
    save_state(model, path / "model.safetensors")
    return path


def assert_same_state(a, b):
    left, right = state_of(a), state_of(b)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


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
