"""Mixup and CutMix over a ring, and the losses and targets that they feed."""

import dataclasses

import numpy as np
import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch import nn

from mixerzoo.data.source import Share
from mixerzoo.train.losses import make_loss, make_targets
from mixerzoo.train.mixing import Mix, apply_mix, draw_mix
from mixerzoo.train.recipe import Recipe

MIXUP, CUTMIX = Recipe(mixup=0.5), Recipe(cutmix=1.0)
BOTH = Recipe(mixup=0.2, cutmix=1.0)
HW = (20, 30)


def ring(seed, size=8, classes=5):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, *HW, generator=generator)
    return images, make_targets(torch.randint(classes, (size,), generator=generator), classes, 0.1)


def rows(tensor, places):
    return tensor[torch.tensor(places)]


def test_no_mixing_unless_asked_for():
    assert draw_mix(Recipe(), 3, HW) is None


@pytest.mark.parametrize("recipe", [MIXUP, CUTMIX, BOTH])
def test_a_draw_is_a_function_of_seed_and_step(recipe):
    draws = [draw_mix(recipe, step, HW) for step in range(50)]
    np.random.seed(1)  # whatever else drew numbers
    torch.manual_seed(1)
    assert draws == [draw_mix(recipe, step, HW) for step in range(50)]
    assert len({mix.weight for mix in draws}) > 25
    assert draws != [draw_mix(dataclasses.replace(recipe, seed=1), step, HW) for step in range(50)]


def test_mixup_keeps_the_larger_share_and_follows_its_beta():
    weights = np.array([draw_mix(MIXUP, step, HW).weight for step in range(2000)])
    assert weights.min() >= 0.5
    assert weights.max() <= 1.0
    # Beta(1/2, 1/2) is the arcsine law: its distribution function is 2/pi asin(sqrt x), folded at one half
    for x in (0.55, 0.7, 0.9, 0.99):
        expected = 2 * (2 / np.pi * np.arcsin(np.sqrt(x))) - 1
        assert abs((weights <= x).mean() - expected) < 0.04


def test_cutmix_boxes_are_inside_and_their_area_is_the_share():
    shares = []
    for step in range(500):
        mix = draw_mix(CUTMIX, step, HW)
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= HW[0]
        assert 0 <= left <= right <= HW[1]
        assert mix.weight == pytest.approx(1 - (bottom - top) * (right - left) / (HW[0] * HW[1]), abs=1e-12)
        shares.append(mix.weight)
    assert 0.5 < np.mean(shares) < 0.75  # uniform areas, less what the border cuts off


def test_both_are_drawn_equally_often():
    cut = np.mean([draw_mix(BOTH, step, HW).box is not None for step in range(2000)])
    assert abs(cut - 0.5) < 0.04


def test_mixup_is_a_roll_by_one():
    """big_vision: a * x + (1 - a) * roll(x, 1), for images and targets alike."""
    images, targets = ring(0)
    mix = draw_mix(MIXUP, 7, HW)
    places = Share(batch_size=8, neighbours=True).positions(0)
    mixed, mixed_targets = apply_mix(mix, rows(images, places), rows(targets, places))
    for ours, whole in ((mixed, images), (mixed_targets, targets)):
        x = whole.double().numpy()
        expected = mix.weight * x + (1 - mix.weight) * np.roll(x, 1, axis=0)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-6)
    assert torch.allclose(mixed_targets.sum(1), torch.ones(8))


def test_cutmix_takes_a_box_of_the_left_neighbour():
    images, targets = ring(1)
    mix = Mix(1 - 6 * 10 / 600, (4, 10, 20, 30))
    places = Share(batch_size=8, neighbours=True).positions(0)
    mixed, mixed_targets = apply_mix(mix, rows(images, places), rows(targets, places))
    rolled, inside = images.roll(1, 0), torch.zeros(HW, dtype=torch.bool)
    inside[4:10, 20:30] = True
    assert torch.equal(mixed, torch.where(inside, rolled, images))
    assert inside.double().mean().item() == pytest.approx(1 - mix.weight)
    assert torch.allclose(mixed_targets, 0.9 * targets + 0.1 * targets.roll(1, 0))


@pytest.mark.parametrize("recipe", [MIXUP, CUTMIX])
@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 4), (4, 2)])
def test_the_division_of_the_batch_does_not_matter(recipe, processes, accumulate):
    images, targets = ring(2)
    before = images.clone(), targets.clone()
    for step in range(5):
        mix = draw_mix(recipe, step, HW)
        places = Share(batch_size=8, neighbours=True).positions(0)
        whole = apply_mix(mix, rows(images, places), rows(targets, places))
        parts = []
        for rank in range(processes):
            share = Share(8, accumulate, rank, processes, neighbours=True)
            for micro in range(accumulate):
                places = share.positions(micro)
                parts.append(apply_mix(mix, rows(images, places), rows(targets, places)))
        for ours, expected in zip(map(torch.cat, zip(*parts, strict=True)), whole, strict=True):
            assert torch.equal(ours, expected)
    one = images[:3].clone(), targets[:3].clone()
    apply_mix(mix, *one)
    assert torch.equal(one[0], before[0][:3])
    assert torch.equal(one[1], before[1][:3])


def test_targets():
    targets = make_targets(torch.tensor([2, 0]), 4, 0.2)
    assert targets.dtype == torch.float32
    assert torch.allclose(targets, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert torch.equal(make_targets(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_softmax_loss_is_torchs():
    logits, labels = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    loss_of = make_loss(Recipe(loss="softmax"))
    for smoothing in (0.0, 0.1):
        expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels)
        assert torch.allclose(loss_of(logits, make_targets(labels, 9, smoothing)), expected)


def test_sigmoid_loss_is_summed_over_classes():
    logits, labels = 3 * torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    targets = make_targets(labels, 9, 0.0)
    loss = make_loss(Recipe(loss="sigmoid"))(logits, targets)
    assert torch.allclose(loss, BinaryCrossEntropy(smoothing=0.0, sum_classes=True)(logits, targets))
    x, y = logits.double().numpy(), targets.double().numpy()
    by_hand = -(y * np.log(1 / (1 + np.exp(-x))) + (1 - y) * np.log(1 / (1 + np.exp(x)))).sum(1).mean()
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_losses_are_float32_at_least(loss):
    loss_of, targets = make_loss(Recipe(loss=loss)), make_targets(torch.arange(4), 1000, 0.0)
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            rounded = loss_of(logits, targets)
        assert rounded.dtype == torch.float32
        assert torch.allclose(rounded, loss_of(logits.float(), targets), rtol=1e-6)
    rounded.backward()
    assert logits.grad.dtype == torch.bfloat16
    assert loss_of(logits.double(), targets).dtype == torch.float64
