"""How fast one device trains and how fast images are read: measured, recorded, read back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mixerzoo.atomic import write_atomically
from mixerzoo.checks import check_integer, check_number
from mixerzoo.config import MixerConfig
from mixerzoo.data.source import MicroBatch, Share, Source
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError
from mixerzoo.model import Mixer
from mixerzoo.train.machine import device_name, memory_gib, versions
from mixerzoo.train.options import RunOptions
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.step import TrainStep

_SIZES = (
    "img_size",
    "patch_size",
    "in_chans",
    "num_classes",
    "embed_dim",
    "depth",
    "tokens_mlp_dim",
    "channels_mlp_dim",
)
_WARMUP = {"cuda": 5, "cpu": 1}  # steps before the clock runs
_STEPS = {"cuda": 10, "cpu": 3}  # measured at least
_MAX_ACCUMULATE = {"cuda": 8, "cpu": 1}  # micro-batches of a measured step at most
_SECONDS = 3.0  # measured at least
_LONGEST = 20.0  # what is slow is not measured for longer
_FEWEST = 2  # steps that are measured however slow they are
_CPU_MICRO_BATCH = 4  # images that a processor is measured with at most


@dataclass(frozen=True)
class Throughput:
    """Images per second that one device trained with, and under which circumstances.

    Attributes:
        device: The card's or processor's name.
        device_type: ``"cuda"`` or ``"cpu"``.
        images_per_second: Of whole training steps: the median step.
        micro_batch: Images that went through the model at once.
        accumulate: Micro-batches of a measured step.
        passes: Forward and backward passes of a step (2 for sharpness-aware minimisation).
        trainable: The recipe's field.
        opt: The recipe's field.
        sizes: The sizes of the model.
        amp: bfloat16 autocast.
        compile: ``torch.compile``.
        grad_checkpointing: Layers were computed again in the backward pass.
        backend: What was asked for; None for the model's own choice.
        memory_gib: Peak memory of the card; of a processor what was resident.
        steps: Steps measured.
        slowest: Images per second of the slowest of them.
        versions: Python, PyTorch and so on.
        date: When, in UTC.
    """

    device: str
    device_type: str
    images_per_second: float
    micro_batch: int
    accumulate: int
    passes: int
    trainable: str
    opt: str
    sizes: dict[str, Any]
    amp: bool
    compile: bool
    grad_checkpointing: bool
    backend: str | None
    memory_gib: float | None
    steps: int
    slowest: float
    versions: dict[str, str]
    date: str

    def __str__(self) -> str:
        """What was measured, in one line."""
        how = [f"micro-batch {self.micro_batch}", "bfloat16 autocast" if self.amp else "float32"]
        how += ["torch.compile"] if self.compile else []
        how += ["gradient checkpointing"] if self.grad_checkpointing else []
        how += [f"{self.backend} layers"] if self.backend else []
        return (
            f"{self.images_per_second:,.4g} images/s on {self.device} ({', '.join(how)}; median of {self.steps} steps, "
            f"slowest {self.slowest:,.4g}; torch {self.versions.get('torch', 'unknown')}, {self.date})"
        )

    def check_fits(self, config: MixerConfig, recipe: Recipe) -> None:
        """Raise ConfigError unless it was measured with such a model and such steps."""
        now = {**sizes_of(config), "passes": passes_of(recipe), "trainable": recipe.trainable, "opt": recipe.opt}
        was = {**self.sizes, "passes": self.passes, "trainable": self.trainable, "opt": self.opt}
        changed = [f"{name} {was.get(name)!r} instead of {value!r}" for name, value in now.items()
                   if was.get(name) != value]  # fmt: skip
        if changed:
            raise ConfigError(
                f"The recorded throughput is of another model or recipe ({', '.join(changed)}): measure one for this."
            )

    def write(self, path: Path) -> None:
        """Write the record as JSON, in one move.

        Raises:
            StorageError: It cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> Throughput:
        """Read a record that :meth:`write` wrote.

        Raises:
            ConfigError: There is no such file, or it is no record of a throughput.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a record of a throughput ({error}).") from None
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or values.keys() != fields:
            wrong = sorted(fields ^ values.keys()) if isinstance(values, dict) else ["no object"]
            raise ConfigError(
                f"{path} is no record of a throughput ({', '.join(wrong)}): let a dry run on that device write one."
            )
        check_number("images_per_second", values["images_per_second"], above=0.0)
        for name in ("micro_batch", "accumulate", "passes"):
            check_integer(name, values[name], minimum=1)
        for name, kind in (("device", str), ("date", str), ("sizes", dict), ("versions", dict)):
            if not isinstance(values[name], kind):
                raise ConfigError(f"{path}: {name}={values[name]!r} is no {kind.__name__}.")
        if isinstance(values["sizes"].get("img_size"), list):
            values["sizes"]["img_size"] = tuple(values["sizes"]["img_size"])
        return cls(**values)


@dataclass(frozen=True)
class Loading:
    """Images per second that were read, decoded and augmented on this machine.

    Attributes:
        images_per_second: Of all workers together.
        workers: Processes that read; 0 for the training process itself.
        images: Images measured.
    """

    images_per_second: float
    workers: int
    images: int


def sizes_of(config: MixerConfig) -> dict[str, Any]:
    """Those fields of a configuration that decide how fast it trains."""
    return {name: getattr(config, name) for name in _SIZES}


def passes_of(recipe: Recipe) -> int:
    """Forward and backward passes of one step."""
    return 2 if recipe.sam_rho else 1


def measure_training(model: Mixer, recipe: Recipe, options: RunOptions, *, micro_batch: int) -> Throughput:
    """Do real steps of the recipe on random images with a fresh model of the same sizes; ``model`` is left alone.

    A step has as many micro-batches as a batch of the recipe takes, up to a few: the optimiser's share of the time is
    then no smaller than in the run.

    Slow steps are measured for about 20 seconds after the first one, and two of them at least.

    Args:
        model: Its configuration is used.
        recipe: Loss, optimiser, mixup and so on.
        options: ``device``, ``amp``, ``compile``, ``backend`` and ``grad_checkpointing`` are used.
        micro_batch: Images that go through the model at once; a processor takes 4 at most, any device no more than a
            batch.

    Raises:
        ConfigError: The micro-batch does not fit into the card's memory.
    """
    device = torch.device(options.device)
    micro_batch = min(micro_batch, recipe.batch_size, *([_CPU_MICRO_BATCH] if device.type == "cpu" else []))
    accumulate = max(1, min(_MAX_ACCUMULATE[device.type], recipe.batch_size // micro_batch))
    images = micro_batch * accumulate
    recipe = dataclasses.replace(recipe, batch_size=images, epochs=1, steps=0, warmup_epochs=0.0, warmup_steps=0)
    options = dataclasses.replace(options, shard=False, accumulate=accumulate)
    cards = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cards):
            if cards:
                torch.cuda.reset_peak_memory_stats(device)
            fresh = Mixer.from_config(model.config, device=device)
            step = TrainStep(fresh, recipe, options, World(device=device), 100 * images)
            batches = _random_batches(model.config, recipe, micro_batch, accumulate, pin=device.type == "cuda")
            seconds = _time_steps(step, batches, device)
            memory = memory_gib(device)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"A micro-batch of {micro_batch} images does not fit into the memory of {device_name(device)}: lower it."
        ) from None
    return Throughput(
        device=device_name(device),
        device_type=device.type,
        images_per_second=images / median(seconds),
        micro_batch=micro_batch,
        accumulate=accumulate,
        passes=passes_of(recipe),
        trainable=recipe.trainable,
        opt=recipe.opt,
        sizes=sizes_of(model.config),
        amp=options.amp,
        compile=options.compile,
        grad_checkpointing=options.grad_checkpointing,
        backend=options.backend,
        memory_gib=memory,
        steps=len(seconds),
        slowest=images / max(seconds),
        versions=versions(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


def _random_batches(
    config: MixerConfig, recipe: Recipe, micro_batch: int, accumulate: int, *, pin: bool
) -> list[MicroBatch]:
    rows = micro_batch + bool(recipe.mixup or recipe.cutmix)
    generator = torch.Generator().manual_seed(0)
    shape, classes = (rows, config.in_chans, *config.image_hw), max(config.num_classes, 1)
    batches = [
        MicroBatch(torch.randn(shape, generator=generator), torch.randint(classes, (rows,), generator=generator))
        for _ in range(accumulate)
    ]
    return [batch.pin_memory() for batch in batches] if pin else batches


def _time_steps(step: TrainStep, batches: list[MicroBatch], device: torch.device) -> list[float]:
    """Seconds of each measured step."""
    seconds: list[float] = []
    for i in itertools.count():
        start = time.perf_counter()
        step(batches, i % step.total_steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= _WARMUP[device.type]:
            seconds.append(time.perf_counter() - start)
        enough = len(seconds) >= _STEPS[device.type] and sum(seconds) >= _SECONDS
        if enough or (len(seconds) >= _FEWEST and sum(seconds) >= _LONGEST):
            break
    return seconds


def measure_loading(source: Source, *, micro_batch: int = 32, workers: int, neighbours: bool = False) -> Loading:
    """Read a source without training, once its workers have started and their queue is used up.

    A slow source is measured for about 20 seconds.

    Args:
        source: What a run would read.
        micro_batch: Images of one micro-batch.
        workers: Processes that read and augment; 0 reads in this process.
        neighbours: See :class:`mixerzoo.data.source.Share`.
    """
    micro_batch = min(micro_batch, source.num_images)
    share = Share(micro_batch, workers=workers, neighbours=neighbours)
    stream: Iterator[MicroBatch] = source.micro_batches(share, 0)
    try:
        next(stream)
        images, start = 0, time.perf_counter()
        for _ in range(2 * workers):  # what the workers had ready when the first came
            next(stream)
            if time.perf_counter() - start >= _LONGEST:
                break
        start = time.perf_counter()
        while True:
            images += len(next(stream).labels)
            seconds = time.perf_counter() - start
            if seconds >= _LONGEST or (seconds >= _SECONDS and images >= 4 * micro_batch * max(workers, 1)):
                return Loading(images / seconds, workers, images)
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()  # ends the workers
