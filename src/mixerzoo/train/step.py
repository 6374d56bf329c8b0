"""One optimiser step of a recipe: micro-batches in, updated weights out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mixerzoo.data.source import MicroBatch, seed_of
from mixerzoo.distributed import World
from mixerzoo.model import Mixer
from mixerzoo.train.losses import make_loss, make_targets
from mixerzoo.train.mixing import apply_mix, draw_mix
from mixerzoo.train.optim import make_optimizer, make_scheduler
from mixerzoo.train.options import RunOptions
from mixerzoo.train.parallel import make_equal, prepare, settle, shard_model, synchronised
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.sam import Sam


class TrainStep:
    """A model with everything that changes it.

    Random numbers of the forward pass (stochastic depth, dropout) are a function of the recipe's seed, the step and
    the micro-batch's place in the global batch, so that a resumed run draws those of an uninterrupted one.

    Args:
        model: What to train, on the process's device.
        recipe: What to do.
        options: How to use the machines.
        world: The job.
        num_images: Images of the training split.

    Raises:
        ConfigError: The recipe cannot be used with this model, job or packages.
    """

    def __init__(self, model: Mixer, recipe: Recipe, options: RunOptions, world: World, num_images: int):
        self.model, self.recipe, self.options, self.world = model, recipe, options, world
        if world.size > 1:
            make_equal(model)
        if recipe.trainable == "head":
            model.requires_grad_(False)
            model.head.requires_grad_(True)
        self.ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        if options.shard:
            shard_model(model, world)
            if self.ema is not None:
                shard_model(self.ema.module, world)
        self.total_steps, warmup = recipe.total_steps(num_images), recipe.total_warmup_steps(num_images)
        self.optimizer = make_optimizer(model, recipe)
        self.scheduler = make_scheduler(self.optimizer, recipe, self.total_steps, warmup)
        self.sam = Sam(self._trained(), recipe) if recipe.sam_rho else None
        self.loss_of = make_loss(recipe)
        self.forward = prepare(model, options, world)
        micro_batch = recipe.batch_size // (world.size * options.accumulate)  # no other size: compiled code is for one
        images = torch.zeros(micro_batch, model.config.in_chans, *model.config.image_hw, device=world.device)
        settle(self.forward, images, amp=options.amp)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def averaged(self) -> Mixer:
        """What is evaluated and saved: the average if the recipe has one, else the model."""
        return self.ema.module if self.ema is not None else self.model

    def __call__(self, batches: Sequence[MicroBatch], step: int) -> Tensor:
        """Do step number ``step`` (from 0) on this process's micro-batches; returns the mean of their losses."""
        self.model.train()
        self.scheduler.step_update(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batches, step)
        if self.sam is not None:
            self.sam.climb(self.lr / self.recipe.lr)
            self.optimizer.zero_grad(set_to_none=True)
            self._backward(batches, step)
            self.sam.descend()
        if self.recipe.clip_grad:
            nn.utils.clip_grad_norm_(self._trained(), self.recipe.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=step)
        return loss

    def _backward(self, batches: Sequence[MicroBatch], step: int) -> Tensor:
        mix = draw_mix(self.recipe, step, self.model.config.image_hw)
        device, total = self.world.device, torch.zeros((), device=self.world.device)
        for i, batch in enumerate(batches):
            images = batch.images.to(device, non_blocking=True)
            labels = batch.labels.to(device, non_blocking=True)
            targets = make_targets(labels, self.model.num_classes, self.recipe.label_smoothing)
            if mix is not None:
                images, targets = apply_mix(mix, images, targets)
            torch.manual_seed(seed_of(self.recipe.seed, step, self.world.rank * len(batches) + i))
            with synchronised(self.forward, last=i == len(batches) - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.options.amp):
                    logits = self.forward(images)
                loss = self.loss_of(logits, targets) / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def weights_are_finite(self) -> bool:
        """Whether every trained weight is a number, on every process."""
        parts = [p.detach() for p in self._trained()]
        local = [getattr(p, "to_local", lambda p=p: p)() for p in parts]
        bad = torch.stack([torch.isfinite(p).all().logical_not() for p in local]).any()
        return not self.world.sum(bad.to(torch.int64)).item()
