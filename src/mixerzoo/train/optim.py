"""Optimiser and learning-rate schedule of a recipe: timm's, held to the recipe's rules."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from mixerzoo.errors import ConfigError
from mixerzoo.train.recipe import Recipe

DECOUPLED = ("adamw", "adamwlegacy", "lion", "muon", "nadamw", "radamw", "sgdw")
"""Optimisers of timm whose step takes ``lr * weight_decay`` of the weights, whatever the gradients are."""


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimiser by name; biases and norms are exempt from weight decay.

    Args:
        model: Its trainable parameters are optimised, with ``recipe.trainable="head"`` those of ``model.head`` alone;
            their gradients may be sharded (FSDP2).
        recipe: ``opt``, ``lr``, ``weight_decay``, ``decay_rule``, ``momentum`` and ``trainable`` are used.

    Raises:
        ConfigError: timm does not know the name, the optimiser has no decay that could be independent of the learning
            rate, or nothing is trainable.
    """
    part = model.get_submodule("head") if recipe.trainable == "head" else model
    if not any(parameter.requires_grad for parameter in part.parameters()):
        raise ConfigError(
            f"trainable={recipe.trainable!r}: the model has no such parameters. Give it a head (num_classes above 0) "
            "and leave requires_grad on."
        )
    try:
        return create_optimizer_v2(
            part, opt=recipe.opt, lr=recipe.lr, weight_decay=_decay(recipe), momentum=recipe.momentum
        )
    except ValueError as error:
        raise ConfigError(
            f"opt={recipe.opt!r} with momentum={recipe.momentum}: {error}. timm.optim.list_optimizers() names them "
            "all; pip install 'mixerzoo[train]' brings a timm that has those of our recipes."
        ) from None


def _decay(recipe: Recipe) -> float:
    """The weight decay to give a decoupled optimiser, which multiplies it by the learning rate of the step.

    big_vision's update is ``-schedule(t) * (lr * adam + weight_decay * weights)``, so dividing by the peak rate makes
    the two the same.
    """
    if recipe.decay_rule == "times-lr" or not recipe.weight_decay:
        return recipe.weight_decay
    if recipe.opt.lower() not in DECOUPLED:
        raise ConfigError(
            f"decay_rule='independent' needs an optimiser that applies weight decay apart from the gradient, and "
            f"opt={recipe.opt!r} does not: use one of {', '.join(DECOUPLED)}, or decay_rule='times-lr'."
        )
    return recipe.weight_decay / recipe.lr


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, total_steps: int, warmup_steps: int) -> Scheduler:
    """Linear warm-up from 0, then the recipe's schedule, counted in steps.

    Call ``step_update(step)`` before step number ``step``, from 0: the learning rate of step 0 is 0 if there is a
    warm-up, step ``warmup_steps`` has the peak rate, and ``total_steps`` (one after the last) has ``min_lr_ratio`` of
    it. Between the two a cosine or a straight line falls, or the rate stays at its peak (``"constant"``).

    Source: big_vision's ``create_learning_rate_schedule`` (``big_vision/utils.py``), whose linear schedule this is.

    Args:
        optimizer: Its learning rates are the peak rates.
        recipe: ``schedule``, ``lr`` and ``min_lr_ratio`` are used.
        total_steps: Optimiser steps of the whole run.
        warmup_steps: How many of them are the warm-up.

    Raises:
        ConfigError: The warm-up is longer than the run, so that the peak rate would never be reached.
    """
    if warmup_steps > total_steps:
        raise ConfigError(
            f"The warm-up of {warmup_steps} steps is longer than the run of {total_steps}: lower warmup_steps or "
            "warmup_epochs, or train for longer."
        )
    common: dict[str, Any] = {
        "t_initial": max(total_steps - warmup_steps, 2),  # of 1, timm remarks that nothing falls; step 0 has the peak
        "lr_min": recipe.lr * recipe.min_lr_ratio,
        "warmup_t": warmup_steps,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    if recipe.schedule == "constant":
        return PolyLRScheduler(optimizer, **common | {"lr_min": recipe.lr})  # a line from the peak to the peak
    if recipe.schedule == "linear":
        return PolyLRScheduler(optimizer, power=1.0, **common)
    return CosineLRScheduler(optimizer, **common)
