"""Preprocessing and augmentation."""

import numpy as np
import pytest
import timm
import torch
from image_files import gradient
from PIL import Image
from training import DATA_CONFIG

import mixerzoo
from mixerzoo.data.transforms import MAX_ASPECT, Augmentation, LimitAspect, eval_transform, train_transform
from mixerzoo.errors import ConfigError


def test_long_images_are_cut_to_what_the_crop_sees():
    for size in [(1000, 10), (10, 1000)]:
        image = gradient(*size)
        cut = LimitAspect()(image)
        assert max(cut.size) == MAX_ASPECT * min(cut.size)
        left, top = (size[0] - cut.size[0]) // 2, (size[1] - cut.size[1]) // 2
        expected = image.crop((left, top, left + cut.size[0], top + cut.size[1]))
        assert np.array_equal(np.asarray(cut), np.asarray(expected))
    square = gradient(40, 30)
    assert LimitAspect()(square) is square


def test_evaluation_transform_is_timms(tmp_path):
    """Same pixels as timm's own pipeline for the flagship's configuration."""

    image = gradient(300, 260)
    ours = mixerzoo.create_transform("mixer_b16.goog_in1k")(image)
    theirs = timm.data.create_transform(
        input_size=(3, 224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875
    )(image)
    assert torch.equal(ours, theirs)
    assert ours.shape == (3, 224, 224)
    assert -1.0 <= ours.min() < ours.max() <= 1.0


def test_transform_follows_the_model():
    model = mixerzoo.create_model("mixer_b16", img_size=(64, 96), in_chans=1, device="meta")
    assert mixerzoo.create_transform(model)(gradient(mode="L")).shape == (1, 64, 96)
    training = mixerzoo.create_transform("mixer_b16.miil_in21k", is_training=True)
    tensor = training(gradient(300, 300))
    assert tensor.shape == (3, 224, 224)
    assert 0.0 <= tensor.min() < tensor.max() <= 1.0  # MIIL's range


def test_augmentations_give_the_models_input():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for crop in ("pad", "inception"):
        for extra in ({}, {"rand_augment": "rand-m9-n2-mstd0.5-inc1", "random_erasing": 1.0}):
            tensor = train_transform(DATA_CONFIG, Augmentation(crop=crop, **extra))(image)
            assert tensor.shape == (3, 32, 32)
            assert tensor.dtype == torch.float32
    plain = train_transform(DATA_CONFIG, Augmentation(crop="pad", pad=0, hflip=1.0))
    flipped = eval_transform(DATA_CONFIG)(image.resize((32, 32), Image.Resampling.BICUBIC)).flip(-1)
    assert torch.allclose(plain(image), flipped)


@pytest.mark.parametrize(
    ("field", "value"),
    [("crop", "centre"), ("pad", -1), ("hflip", 1.5), ("random_erasing", "often"), ("crop_area", (0.5, 0.1))],
)
def test_bad_augmentations_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        Augmentation(**{field: value})


def test_only_centre_crops_cut_long_images():
    """Squashing looks at the whole image, so nothing may be cut off before it."""
    image = gradient(400, 20)
    squashed = eval_transform(DATA_CONFIG | {"crop_mode": "squash"})(image)
    whole = timm.data.create_transform(**DATA_CONFIG | {"crop_mode": "squash"})(image)
    assert torch.equal(squashed, whole)
