"""The training loop: from the newest checkpoint, or the beginning, to the recipe's last step."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice

import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from mixerzoo.data.folder import in_one_line
from mixerzoo.data.source import Fault, MicroBatch, Share
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError, DataError, TrainingError
from mixerzoo.inference.evaluate import Accuracy, evaluate
from mixerzoo.model import Mixer
from mixerzoo.train.checkpoint import Checkpoint, Checkpoints, TrainState, check_same, newest, restore
from mixerzoo.train.data import Data
from mixerzoo.train.options import RunOptions
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.step import TrainStep
from mixerzoo.train.watch import LOG_FILE, Watch, read_log


class Loop:
    """A run of a recipe: steps, evaluations, checkpoints.

    Args:
        model: What to train, in place.
        recipe: What to do.
        data: What to learn from.
        options: How to use the machines.
        world: The job.

    Raises:
        TrainingError: ``out_dir`` holds another run.
        DataError: There is less than one batch.
        ConfigError: The recipe cannot be used with this model, job or packages, or processes see different data.
    """

    def __init__(self, model: Mixer, recipe: Recipe, data: Data, options: RunOptions, world: World):
        self.recipe, self.data, self.options, self.world = recipe, data, options, world
        self.share = Share(
            recipe.batch_size,
            options.accumulate,
            world.rank,
            world.size,
            recipe.seed,
            options.workers,
            neighbours=bool(recipe.mixup or recipe.cutmix),
            pin_memory=world.device.type == "cuda",
        )
        self.steps_per_epoch = data.train.num_images // recipe.batch_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"The training split has {data.train.num_images} images, fewer than one batch of {recipe.batch_size}: "
                "lower batch_size."
            )
        checkpoint = self._find(model)
        self.train_step = TrainStep(model.to(world.device), recipe, options, world, data.train.num_images)
        self.state = TrainState(
            model, self.train_step.ema.module if self.train_step.ema else None, self.train_step.optimizer
        )
        self.checkpoints = Checkpoints(options.out_dir, world, options.keep)
        self.step = 0
        self.faults: dict[str, str] = {}
        if checkpoint is not None:
            restore(checkpoint, self.state)
            self.step = checkpoint.run["step"]
            self.faults = dict(checkpoint.run["faults"])
        self.last_good = checkpoint.folder if checkpoint is not None else None
        self.watch = Watch(
            options.out_dir,
            total_steps=self.train_step.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            images_per_step=recipe.batch_size,
            first_step=self.step,
            world=world,
            progress=options.progress,
            tensorboard=options.tensorboard,
        )
        self._say_what_is_new(checkpoint)

    def _find(self, model: Mixer) -> Checkpoint | None:
        """The checkpoint to go on from, the same on every process."""
        found, out_dir = newest(self.options.out_dir), self.options.out_dir
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "max_corrupt"}
        self.described = {
            "recipe": recipe,
            "model": asdict(model.config),
            "training split": self.data.train.describe(self.share),
        }
        views = self.world.gather(
            (found.folder.name if found else "none", self.data.train.num_images, self.data.evaluation is not None)
        )
        if any(view != views[0] for view in views):
            raise ConfigError(
                f"The processes of the job see different things (newest checkpoint, training images, whether there is "
                f"something to evaluate on): {views}. Every machine must see the same --out and the same data."
            )
        if found is None:
            return None
        for what, now in self.described.items():
            check_same(what, found.run[what], now, out_dir)
        return found

    def _say_what_is_new(self, checkpoint: Checkpoint | None) -> None:
        """Tell of a resume from nothing, and of one on other terms, which may round differently."""
        self.terms = {
            "processes": self.world.size,
            **{
                name: getattr(self.options, name)
                for name in ("device", "amp", "compile", "backend", "accumulate", "shard")
            },
        }
        if checkpoint is None:
            if self.options.resume:
                self.watch.note(f"{self.options.out_dir} has no checkpoint yet: starting from the beginning")
            return
        before = checkpoint.run["terms"]
        changed = [f"{name} {before.get(name)} -> {now}" for name, now in self.terms.items() if before.get(name) != now]
        if changed:
            self.watch.note(f"resumed with {', '.join(changed)}: results differ by rounding")

    def run(self) -> Accuracy | None:
        """Train to the end; returns the last evaluation.

        Raises:
            TrainingError: The loss or a weight is no longer a number.
            DataError: Too many images cannot be read, a label is none of the model's classes, or the data ends.
            StorageError: A checkpoint or the log could not be written.
        """
        accuracy: Accuracy | None = None
        stream = in_one_line(self.data.train.micro_batches(self.share, self.step))
        try:
            with self.checkpoints:
                if self._evaluation_was_cut_off():
                    accuracy = self.evaluate()
                while self.step < self.train_step.total_steps:
                    accuracy = self._advance(list(islice(stream, self.options.accumulate)))
                return accuracy or self.evaluate()  # resumed after the last step
        finally:
            stream.close()  # ends the workers
            self.watch.close()

    def _advance(self, batches: list[MicroBatch]) -> Accuracy | None:
        """One step, and what is due after it."""
        self._check_batches(batches)
        loss = self.train_step(batches, self.step)
        self._note_faults([fault for batch in batches for fault in batch.faults])
        self._check_loss(loss)
        self.watch.step(self.step, loss, self.train_step.lr)
        self.step += 1
        if self._is_due():
            with self.watch.paused("saving a checkpoint"):
                self.save()
        return self.evaluate() if self._evaluation_is_due() else None

    def _evaluation_is_due(self) -> bool:
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        return self.step == self.train_step.total_steps or (rest == 0 and epoch % self.options.evaluate_every == 0)

    def _evaluation_was_cut_off(self) -> bool:
        """Whether the run was stopped after its last checkpoint and before the evaluation that belongs to it."""
        if not 0 < self.step < self.train_step.total_steps or not self._evaluation_is_due():
            return False
        lines = read_log(self.options.out_dir / LOG_FILE) if self.world.is_first else []
        return not any(self.world.gather(any(line["step"] == self.step and "top1" in line for line in lines)))

    def _check_batches(self, batches: list[MicroBatch]) -> None:
        if len(batches) != self.options.accumulate:
            raise DataError(f"The training data ended before step {self.step}: a source must yield without end.")
        for batch in batches:
            lowest, highest = int(batch.labels.min()), int(batch.labels.max())
            if lowest < 0 or highest >= self.train_step.model.num_classes:
                raise DataError(
                    f"The data has a label {highest if lowest >= 0 else lowest}, and the model has classes 0 to "
                    f"{self.train_step.model.num_classes - 1}: give the right number of classes."
                )

    def keep_average(self) -> None:
        """Put the averaged weights into the model that was trained, if the recipe has an average."""
        if self.state.ema is not None:
            set_model_state_dict(self.state.model, get_model_state_dict(self.state.ema))

    def _is_due(self) -> bool:
        every = self.options.checkpoint_every or self.steps_per_epoch
        return self.step == self.train_step.total_steps or self.step % every == 0

    def evaluate(self) -> Accuracy | None:
        """Accuracy of what would be saved now."""
        if self.data.evaluation is None:
            return None
        with self.watch.paused("evaluating"):
            accuracy = evaluate(
                self.train_step.averaged,
                self.data.evaluation,
                world=self.world,
                amp=self.options.amp,
                workers=self.options.workers,
                progress=self.options.progress,
            )
        self.watch.evaluated(self.step, {"top1": accuracy.top1, "top5": accuracy.top5})
        return accuracy

    def save(self) -> None:
        """Start writing a checkpoint of the state after ``self.step`` steps.

        Raises:
            TrainingError: A weight is no longer a number.
            StorageError: The checkpoint before could not be written.
        """
        if not self.train_step.weights_are_finite():
            raise self._diverged("A weight is NaN or infinite")
        self._finish_saving()
        everyones = {name: reason for found in self.world.gather(self.faults) for name, reason in found.items()}
        self._note_faults([Fault(name, reason) for name, reason in everyones.items()])
        run = {"step": self.step, "faults": everyones, "terms": self.terms, **self.described}
        self.checkpoints.save(self.state, run)

    def _finish_saving(self) -> None:
        self.last_good = self.checkpoints.finish() or self.last_good

    def _check_loss(self, loss: torch.Tensor) -> None:
        """All processes stop together, on a CPU at once, on a GPU where the log waits for it anyway.

        What lies between, :meth:`save` sees by the weights.
        """
        if self.world.device.type != "cpu" and not self.watch.is_due(self.step):
            return
        bad = torch.isfinite(loss).logical_not().to(torch.int64)
        if int(self.world.sum(bad)):
            raise self._diverged("The loss is NaN or infinite")

    def _diverged(self, what: str) -> TrainingError:
        self._finish_saving()
        good = f"The last good checkpoint is {self.last_good}" if self.last_good else "No checkpoint was written before"
        return TrainingError(
            f"{what} after step {self.step} of {self.train_step.total_steps}; a lower lr, a longer warm-up or gradient "
            f"clipping usually helps. {good}."
        )

    def _note_faults(self, faults: list[Fault]) -> None:
        for fault in faults:
            if fault.name in self.faults:
                continue
            self.faults[fault.name] = fault.reason
            self.watch.note(f"skipped {fault.name}: {fault.reason}")
            limit = self.recipe.max_corrupt * self.data.train.num_images
            if len(self.faults) > limit:
                raise DataError(
                    f"{len(self.faults)} of {self.data.train.num_images} training samples are unusable, more than "
                    f"max_corrupt={self.recipe.max_corrupt:g} allows; the last is {fault.name} ({fault.reason}). "
                    "Replace them, or raise max_corrupt."
                )
