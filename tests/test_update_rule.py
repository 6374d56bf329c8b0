"""Ten steps of ``imagenet1k_b16`` against its update rule written in NumPy.

Only gradients of the logits with respect to the weights come from PyTorch. Targets, mixup, loss and its slope, clip,
Adam, decay and schedule are written down here from big_vision's definitions (``big_vision/{utils,optax}.py`` and
``configs/mlp_mixer_i1k.py``).
"""

import numpy as np
import pytest
import torch
from torch import nn

import mixerzoo
from mixerzoo.data.source import Share
from mixerzoo.train.losses import make_loss, make_targets
from mixerzoo.train.mixing import apply_mix, draw_mix
from mixerzoo.train.optim import make_optimizer, make_scheduler
from mixerzoo.train.recipe import get_recipe

STEPS, WARMUP, BATCH, CLASSES = 10, 3, 12, 11
LR, DECAY, CLIP, LINEAR_END = 1e-3, 1e-4, 1.0, 1e-5  # mlp_mixer_i1k.py


def build():
    torch.manual_seed(0)
    model = mixerzoo.Mixer(
        img_size=16, patch_size=8, embed_dim=8, depth=2, tokens_mlp_dim=6, channels_mlp_dim=32, num_classes=CLASSES,
        head_bias=get_recipe("imagenet1k_b16").head_bias, dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():  # biases and a head that are not 0, so that relative errors mean something
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def data():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (STEPS, BATCH, 3, 16, 16)), rng.integers(0, CLASSES, (STEPS, BATCH))


class Reference:
    """big_vision's update of a dictionary of NumPy arrays."""

    def __init__(self, model):
        self.model = model
        self.w = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
        self.m = {name: np.zeros_like(w) for name, w in self.w.items()}
        self.v = {name: np.zeros_like(w) for name, w in self.w.items()}
        self.norms = []

    def schedule(self, step):
        progress = min(max((step - WARMUP) / (STEPS - WARMUP), 0.0), 1.0)
        return (LINEAR_END + (1 - LINEAR_END) * (1 - progress)) * min(1.0, step / WARMUP)

    def gradients(self, images, labels, a):
        targets = np.eye(CLASSES)[labels]
        images = a * images + (1 - a) * np.roll(images, 1, axis=0)
        targets = a * targets + (1 - a) * np.roll(targets, 1, axis=0)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.from_numpy(self.w[name]))
        self.model.zero_grad()
        logits = self.model(torch.from_numpy(images))
        z = logits.detach().numpy()
        loss = -(targets * -np.log1p(np.exp(-z)) + (1 - targets) * -np.log1p(np.exp(z))).sum(axis=1).mean()
        logits.backward(torch.from_numpy((1 / (1 + np.exp(-z)) - targets) / len(z)))
        return loss, {name: p.grad.numpy().copy() for name, p in self.model.named_parameters()}

    def step(self, images, labels, a, step):
        loss, g = self.gradients(images, labels, a)
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        self.norms.append(norm)
        t, factor = step + 1, self.schedule(step)
        for name, w in self.w.items():
            x = g[name] if norm < CLIP else g[name] / norm * CLIP
            self.m[name] = 0.9 * self.m[name] + 0.1 * x
            self.v[name] = 0.999 * self.v[name] + 0.001 * x**2
            adam = self.m[name] / (1 - 0.9**t) / (np.sqrt(self.v[name] / (1 - 0.999**t)) + 1e-8)
            kernel = name.endswith("weight") and "norm" not in name
            self.w[name] = w - factor * (LR * adam + (DECAY * w if kernel else 0.0))
        return loss


def test_ten_steps_of_imagenet1k_b16():
    recipe, model, reference = get_recipe("imagenet1k_b16"), build(), Reference(build())
    images, labels = data()
    places = torch.tensor(Share(BATCH, neighbours=True).positions(0))
    optimizer, loss_of = make_optimizer(model, recipe), make_loss(recipe)
    scheduler = make_scheduler(optimizer, recipe, STEPS, WARMUP)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(STEPS):
        scheduler.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(LR * reference.schedule(step), rel=1e-9, abs=1e-18)
        mix = draw_mix(recipe, step, (16, 16))
        assert mix.box is None
        targets = make_targets(torch.from_numpy(labels[step]), CLASSES, recipe.label_smoothing).double()
        mixed = apply_mix(mix, torch.from_numpy(images[step])[places], targets[places])
        loss = loss_of(model(mixed[0]), mixed[1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
        expected = reference.step(images[step], labels[step], mix.weight, step)
        assert loss.item() == pytest.approx(expected, rel=1e-6), step
        for name, parameter in model.named_parameters():
            ours, theirs = parameter.detach().numpy(), reference.w[name]
            assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max(), (step, name)
        if step == 0:  # the rate of the first step is 0
            assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())
    # the moves are compared as well: they are small beside the weights
    for name, parameter in model.named_parameters():
        moved, expected = (parameter.detach() - start[name]).numpy(), reference.w[name] - start[name].numpy()
        # the token MLP's last bias cannot influence the logits: its gradient is rounding, and Adam follows that
        if "mlp_tokens.fc2.bias" not in name:
            assert np.abs(moved - expected).max() <= 1e-5 * np.abs(expected).max(), name
    assert min(reference.norms) < CLIP < max(reference.norms), reference.norms


def test_zero_gradients_leave_biases_and_norms_alone():
    recipe, model = get_recipe("imagenet1k_b16"), build()
    optimizer = make_optimizer(model, recipe)
    scheduler = make_scheduler(optimizer, recipe, STEPS, WARMUP)
    kept, schedule = 1.0, Reference(build()).schedule
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(STEPS):
        scheduler.step_update(step)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        kept *= 1 - DECAY * schedule(step)
    kernels = {name for name in start if name.endswith("weight") and "norm" not in name}
    assert kept < 0.9996
    for name, parameter in model.named_parameters():
        expected = start[name] * kept if name in kernels else start[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=0, msg=name)
