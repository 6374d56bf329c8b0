"""The training loop: one process, one device, resumable at every epoch."""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from mixerzoo.data.folder import in_one_line
from mixerzoo.errors import ConfigError, DataError, TrainingError
from mixerzoo.inference.evaluate import Accuracy, eval_batches, evaluate
from mixerzoo.model import Mixer
from mixerzoo.train.checkpoint import FILE_NAME, check_same, load_checkpoint, save_checkpoint
from mixerzoo.train.recipe import Recipe


@dataclass(frozen=True)
class RunOptions:
    """How a run uses its machine.

    None of it is meant to change the result, but augmentation draws other random numbers with other ``workers``.

    Attributes:
        out_dir: Receives ``checkpoint.pt`` and ``metrics.jsonl``, and at the end the weights.
        device: Where to train.
        amp: bfloat16 autocast.
        compile: Train through ``torch.compile``.
        workers: Processes that read and augment images; 0 reads in the training process.
        resume: Go on from ``out_dir``'s checkpoint if there is one.
        progress: Show a progress bar (on a terminal) and a line an epoch.
        weights_dtype: Type of the tensors in ``model.safetensors``.
    """

    out_dir: Path
    device: str = "cpu"
    amp: bool = True
    compile: bool = False
    workers: int = 2
    resume: bool = False
    progress: bool = True
    weights_dtype: torch.dtype = torch.float32


class _Run:
    """Everything a run carries from step to step."""

    def __init__(self, model: Mixer, recipe: Recipe, train_set: Dataset[Any], options: RunOptions):
        self.recipe, self.options = recipe, options
        self.device = torch.device(options.device)
        self.model = model.to(self.device)
        size = len(train_set)  # type: ignore[arg-type]
        self.data = {"num_images": size, "classes": getattr(train_set, "classes", None)}
        self.sampler: DistributedSampler[Any] = DistributedSampler(train_set, num_replicas=1, rank=0, seed=recipe.seed)
        self.loader = DataLoader(
            train_set,
            batch_size=recipe.batch_size,
            sampler=self.sampler,
            num_workers=options.workers,
            drop_last=True,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
        self.steps_per_epoch = size // recipe.batch_size
        if self.steps_per_epoch == 0:
            raise DataError(f"The training split has {size} images, fewer than one batch of {recipe.batch_size}.")
        self.optimizer = make_optimizer(self.model, recipe)
        self.scheduler = make_scheduler(self.optimizer, recipe, self.steps_per_epoch)
        self.ema = ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        self.mixup = (
            Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=model.num_classes)
            if recipe.mixup or recipe.cutmix
            else None
        )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.0 if self.mixup else recipe.label_smoothing)
        self.forward = torch.compile(self.model) if options.compile else self.model
        self.epoch = 0

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training split; returns its mean loss, last learning rate and speed."""
        self._seed_epoch()
        self.model.train()
        total, start = torch.zeros((), device=self.device), time.perf_counter()
        bar = tqdm(
            self.loader,
            desc=f"epoch {self.epoch + 1}/{self.recipe.epochs}",
            unit="step",
            disable=None if self.options.progress else True,  # None: shown on a terminal only
            leave=False,
        )
        for i, (images, labels) in enumerate(in_one_line(bar)):
            step = self.epoch * self.steps_per_epoch + i
            loss = self._train_step(images.to(self.device), labels.to(self.device), step)
            total += loss
            rate = self.optimizer.param_groups[0]["lr"]
            seen = (i + 1) * self.recipe.batch_size
            speed = seen / (time.perf_counter() - start)
            bar.set_postfix_str(f"loss {loss:.3f}, lr {rate:.2e}, {speed:.0f} images/s", refresh=False)
        mean_loss = float(total) / self.steps_per_epoch
        seconds = time.perf_counter() - start
        images_seen = self.steps_per_epoch * self.recipe.batch_size
        return {"train_loss": mean_loss, "lr": rate, "images_per_second": images_seen / seconds, "seconds": seconds}

    def _train_step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        self.scheduler.step_update(step)
        targets = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
            loss = self.criterion(self.forward(images), targets)
        if not torch.isfinite(loss):
            good = f"The state after epoch {self.epoch} is in {self.options.out_dir / FILE_NAME}" if self.epoch else ""
            raise TrainingError(
                f"The loss is {loss.item()} in epoch {self.epoch + 1}, step {step}; a lower lr or gradient clipping "
                f"usually helps. {good or 'No epoch was finished'}."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip_grad:
            dispatch_clip_grad(self.model.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=step)
        return loss.detach()

    def _seed_epoch(self) -> None:
        """Make order, augmentation and mixup functions of seed and epoch, so that a resumed run repeats them."""
        seed = self.recipe.seed * 1_000_003 + self.epoch
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self.loader.generator.manual_seed(seed)
        self.sampler.set_epoch(self.epoch)

    def evaluate(self, eval_set: Dataset[Any]) -> Accuracy:
        """Accuracy of what would be saved now."""
        averaged = self.ema.module if self.ema is not None else self.model
        batches = eval_batches(eval_set, self.options.workers)
        return evaluate(averaged, batches, device=self.device, amp=self.options.amp)

    def save(self) -> None:
        """Write the state after ``self.epoch`` finished epochs."""
        save_checkpoint(
            self.options.out_dir,
            {
                "epoch": self.epoch,
                "recipe": asdict(self.recipe),
                "config": asdict(self.model.config),
                "data": self.data,
                "model": self.model.state_dict(),
                "ema": self.ema.module.state_dict() if self.ema is not None else None,
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def resume(self) -> None:
        """Take up the state in ``out_dir``, if there is one.

        Raises:
            TrainingError: It is damaged, or of a run with another recipe, model, number of images or classes.
        """
        state = load_checkpoint(self.options.out_dir)
        if state is None:
            return
        check_same("recipe", state["recipe"], asdict(self.recipe), self.options.out_dir)
        check_same("model", state["config"], asdict(self.model.config), self.options.out_dir)
        check_same("training split", state["data"], self.data, self.options.out_dir)
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimiser by name; biases and norms are exempt from weight decay.

    Raises:
        ConfigError: timm does not know the name.
    """
    try:
        return create_optimizer_v2(
            model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
        )
    except ValueError as error:
        raise ConfigError(
            f"opt={recipe.opt!r} with momentum={recipe.momentum}: {error}. timm.optim.list_optimizers() names them "
            "all; pip install 'mixerzoo[train]' brings a timm that has those of our recipes."
        ) from None


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    """Linear warm-up from 0, then cosine or linear decay to ``min_lr`` at the last step (counted in steps)."""
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    common: dict[str, Any] = {
        "t_initial": max(recipe.epochs * steps_per_epoch - warmup, 1),
        "lr_min": recipe.min_lr,
        "warmup_t": warmup,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    if recipe.schedule == "cosine":
        return CosineLRScheduler(optimizer, **common)
    return PolyLRScheduler(optimizer, power=1.0, **common)


def fit(
    model: Mixer, recipe: Recipe, train_set: Dataset[Any], eval_set: Dataset[Any] | None, options: RunOptions
) -> Accuracy | None:
    """Train ``model`` in place; in the end it holds the averaged weights if the recipe has an average.

    Every epoch ends with a line in ``metrics.jsonl`` and a checkpoint in ``options.out_dir``. Of the recipe, the
    model's name and the augmentation have been applied by whoever made ``model`` and ``train_set``
    (:func:`mixerzoo.train.run.train` does both). Seeds Python's, NumPy's and torch's global generators.

    Args:
        model: What to train.
        recipe: What to do.
        train_set: Yields (image tensor, class index); its order is shuffled by seed and epoch.
        eval_set: Evaluated after every epoch; None skips that.
        options: Where to do it.

    Returns:
        The final accuracy on ``eval_set``.

    Raises:
        TrainingError: The loss became NaN or infinite, or ``out_dir`` holds another run.
        DataError: There is less than one batch of images, or an image cannot be read.
    """
    out_dir = options.out_dir
    if not options.resume and (out_dir / FILE_NAME).exists():
        raise TrainingError(f"{out_dir} already holds a run: add --resume to go on with it, or choose another --out.")
    run = _Run(model, recipe, train_set, options)
    run.resume()
    out_dir.mkdir(parents=True, exist_ok=True)
    accuracy: Accuracy | None = None
    while run.epoch < recipe.epochs:
        record: dict[str, Any] = {"epoch": run.epoch + 1, **run.train_epoch()}
        run.epoch += 1
        run.save()
        if eval_set is not None:
            accuracy = run.evaluate(eval_set)
            record |= asdict(accuracy)
        _log(out_dir / "metrics.jsonl", record, show=options.progress)
    if accuracy is None and eval_set is not None:  # resumed after the last epoch
        accuracy = run.evaluate(eval_set)
    if run.ema is not None:
        model.load_state_dict(run.ema.module.state_dict())
    return accuracy


def _log(path: Path, record: dict[str, Any], *, show: bool) -> None:
    """Append one JSON line (and print it); an epoch repeated after a kill appears again with its new time."""
    line = {**record, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if show:
        top1 = f", top-1 {100 * record['top1']:.2f} %" if "top1" in record else ""
        tqdm.write(f"epoch {record['epoch']}: loss {record['train_loss']:.4f}{top1}, {record['seconds']:.0f} s")
