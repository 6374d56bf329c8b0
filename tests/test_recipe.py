"""Recipes: their definitions, overrides, schedules and parameter groups."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from training import QUICK, small_model

import mixerzoo
from mixerzoo.errors import ConfigError
from mixerzoo.train.loop import make_optimizer, make_scheduler
from mixerzoo.train.recipe import get_recipe, list_recipes


def test_recipes_are_found_and_complete():
    assert list_recipes() == ["cifar10_scratch"]
    recipe = get_recipe("cifar10_scratch")
    assert mixerzoo.is_model(recipe.model)
    with pytest.raises(ConfigError, match="Did you mean 'cifar10_scratch'"):
        get_recipe("cifar10")


def test_overrides():
    recipe = QUICK.override(["lr=3e-4", "epochs=7", "augmentation.pad=2", "augmentation.crop_area=0.1,0.9", "opt=sgd"])
    assert (recipe.lr, recipe.epochs, recipe.opt) == (3e-4, 7, "sgd")
    assert recipe.augmentation.pad == 2
    assert recipe.augmentation.crop_area == (0.1, 0.9)
    assert QUICK.lr == 1e-3  # the original is untouched
    longer = QUICK.override(["warmup_epochs=5", "epochs=9"])  # checked together, not one after the other
    assert (longer.warmup_epochs, longer.epochs) == (5.0, 9)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lrr=1", "no field 'lrr'. Did you mean 'lr'"),
        ("lr", "field=value"),
        ("lr=fast", "lr='fast': expected a value like"),
        ("epochs=2.5", "epochs='2.5'"),
        ("epochs=0", "epochs=0"),
        ("augmentation.padd=1", "Augmentation has no field 'padd'"),
        ("augmentation.crop_area=1", "crop_area"),
        ("augmentation=x", "no field 'augmentation'"),
        ("schedule=step", "schedule='step'"),
        ("label_smoothing=1.5", "label_smoothing"),
        ("warmup_epochs=99", "longer than the run"),
        ("lr=nan", "lr=nan"),
        ("batch_size=5", "batch_size=5 must be even"),
        ("augmentation.rand_augment=garbage", "not timm's notation"),
        ("augmentation.crop=centre", "augmentation.crop='centre'"),
    ],
)
def test_bad_overrides_are_named(setting, message):
    with pytest.raises(ConfigError) as caught:
        QUICK.override([setting])
    assert message in str(caught.value)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_is_the_formula(schedule):
    recipe = dataclasses.replace(QUICK, schedule=schedule, epochs=10, warmup_epochs=2.0, min_lr=1e-4, lr=1e-2)
    steps, warmup, total = 5, 10, 50
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr)
    scheduler = make_scheduler(optimizer, recipe, steps)
    for step in range(total):
        scheduler.step_update(step)
        done = (step - warmup) / (total - warmup)
        if step < warmup:
            expected = recipe.lr * step / warmup
        elif schedule == "linear":
            expected = recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 - done)
        else:
            expected = recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + np.cos(np.pi * done))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6, abs=1e-12), step


def test_only_kernels_decay():
    model = small_model()
    groups = make_optimizer(model, QUICK).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name
    with pytest.raises(ConfigError, match="opt='adamm'"):
        make_optimizer(model, dataclasses.replace(QUICK, opt="adamm"))
