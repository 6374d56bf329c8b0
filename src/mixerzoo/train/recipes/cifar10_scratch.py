"""CIFAR-10 from scratch with Mixer-Ti/4 at 32 pixels: 81.3 % top-1 after 32 epochs.

Measured 2026-11-20 on two cores with bf16 autocast and torch.compile (about 110 s an epoch); the built-in checkpoint
``mixer_ti4_32.cifar10``. 57 % after 3 epochs of the same recipe with its schedule cut to 3 and an average of 0.99.
"""

from mixerzoo.data.transforms import Augmentation
from mixerzoo.train.recipe import Recipe

RECIPE = Recipe(
    model="mixer_ti4_32",
    epochs=32,
    batch_size=256,
    opt="muon",
    lr=2e-3,
    weight_decay=0.1,
    momentum=0.95,
    clip_grad=0.0,
    schedule="linear",
    warmup_epochs=1.0,
    augmentation=Augmentation(crop="pad", pad=4, rand_augment="rand-m5-n1-mstd0.5-inc1"),
    label_smoothing=0.1,
    ema_decay=0.998,
)
