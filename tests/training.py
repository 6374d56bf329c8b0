"""A recipe, a model and a data set that train in a second."""

import numpy as np
import torch
from PIL import Image

import mixerzoo
from mixerzoo.data.transforms import Augmentation
from mixerzoo.train import Data, Recipe, RunOptions
from mixerzoo.train.data import open_data

DATA_CONFIG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "crop_pct": 1.0,
    "crop_mode": "center",
}

QUICK = Recipe(
    model="mixer_ti4_32",
    epochs=3,
    batch_size=8,
    opt="adamw",
    lr=1e-3,
    warmup_epochs=1.0,
    augmentation=Augmentation(crop="pad", rand_augment="rand-m5-n1-mstd0.5-inc1"),
    mixup=0.2,
    cutmix=0.5,
    label_smoothing=0.1,
    drop_path_rate=0.1,
    ema_decay=0.9,
)


def write_data(root):
    """Two classes that a glance tells apart: 24 training and 12 test images of red and blue noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 130
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def data(folder, recipe=None):
    return open_data(folder, recipe or QUICK, DATA_CONFIG)


def train_only(folder, recipe=None):
    return Data(data(folder, recipe).train)


def small_model(recipe=None):
    recipe = recipe or QUICK
    torch.manual_seed(recipe.seed)
    return mixerzoo.Mixer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, tokens_mlp_dim=8, channels_mlp_dim=32, num_classes=2,
        drop_path_rate=recipe.drop_path_rate,
    )  # fmt: skip


def options(out, **kwargs):
    return RunOptions(out, **{"workers": 0, "progress": False, "amp": False} | kwargs)
