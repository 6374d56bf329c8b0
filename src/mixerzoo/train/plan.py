"""What a run will take before it begins: steps, operations, bytes; times only where a throughput was measured.

Counting takes a moment and measuring may take a minute, so :func:`make_plan` only counts, and
:meth:`Plan.with_speeds` takes what :mod:`mixerzoo.train.throughput` measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixerzoo.errors import ConfigError, DataError
from mixerzoo.model import Mixer
from mixerzoo.train.cost import (
    PLAIN,
    Layout,
    Memory,
    Operations,
    activation_bytes,
    memory_of,
    optimizer_bytes,
    training_operations,
)
from mixerzoo.train.options import RunOptions
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.throughput import Loading, Throughput

GPUS = (1, 8, 64)
_GIB, _MIB = 2**30, 2**20


@dataclass(frozen=True)
class Gpus:
    """The run on a number of GPUs, with the same global batches.

    Attributes:
        count: GPUs.
        micro_batch: Images that go through the model at once, on each.
        accumulate: Micro-batches of a step on each.
        ddp: Memory of each with a copy of the model on each.
        fsdp: Memory of each with the model split over them.
        hours: Training time if ``count`` GPUs are ``count`` times as fast as the measured one; None: none was measured.
    """

    count: int
    micro_batch: int
    accumulate: int
    ddp: Memory
    fsdp: Memory
    hours: float | None


@dataclass(frozen=True)
class Plan:
    """What a run will take; ``print`` it.

    Attributes:
        model: The recipe's name of it.
        image_hw: Height and width in pixels.
        parameters: Of the model.
        trained: Those that are trained.
        num_images: Images of the training split.
        batch_size: Images of one step.
        steps_per_epoch: Steps of one epoch.
        total_steps: Steps of the run.
        warmup_steps: Those of the warm-up.
        operations: For one image.
        amp: bfloat16 autocast.
        checkpointing: Whether the run computes layers again in the backward pass.
        backends: The layers whose activations are counted.
        activations: Bytes kept for the backward pass for one image: as planned, and in other ways.
        gpus: The run on 1, 8 and 64 GPUs; numbers that cannot share the batch equally are left out.
        here: Measured on this machine, or None.
        throughput: What ``hours`` come from: measured here on a GPU or recorded elsewhere; None: no times.
        loading: Reading speed measured on this machine, or None.
    """

    model: str
    image_hw: tuple[int, int]
    parameters: int
    trained: int
    num_images: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    operations: Operations
    amp: bool
    checkpointing: bool
    backends: Mapping[str, str]
    activations: Mapping[str, int]
    gpus: tuple[Gpus, ...]
    here: Throughput | None
    throughput: Throughput | None
    loading: Loading | None

    @property
    def images_seen(self) -> int:
        """Images of all steps together."""
        return self.total_steps * self.batch_size

    def with_speeds(self, here: Throughput | None, loading: Loading | None) -> Plan:
        """The plan with what was measured on this machine; a GPU's speed gives times where none was recorded."""
        throughput = self.throughput
        if throughput is None and here is not None and here.device_type == "cuda":
            throughput = here
        gpus = self.gpus
        if throughput is not None:
            an_hour = 3600 * throughput.images_per_second
            gpus = tuple(dataclasses.replace(g, hours=self.images_seen / (g.count * an_hour)) for g in gpus)
        return dataclasses.replace(self, here=here, loading=loading, throughput=throughput, gpus=gpus)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        plain = dataclasses.asdict(self) | {"images_seen": self.images_seen}
        plain["operations"]["an_image"] = self.operations.an_image
        for values, gpus in zip(plain["gpus"], self.gpus, strict=True):
            values["ddp"]["total"], values["fsdp"]["total"] = gpus.ddp.total, gpus.fsdp.total
        return plain

    def counted(self) -> str:
        """Steps, operations and bytes as text of several paragraphs."""
        return "\n\n".join((_steps_text(self), _operations_text(self), _bytes_text(self)))

    def measured(self) -> str:
        """Speeds of this machine, and times or why there are none, as text of several paragraphs."""
        return "\n\n".join(part for part in (_speed_text(self), _times_text(self)) if part)

    def __str__(self) -> str:
        """All of it."""
        return f"{self.counted()}\n\n{self.measured()}"


def make_plan(
    model: Mixer,
    recipe: Recipe,
    num_images: int,
    options: RunOptions,
    *,
    micro_batch: int = 256,
    throughput: Throughput | None = None,
) -> Plan:
    """Count what training ``model`` by ``recipe`` takes; nothing is trained and ``model`` is left alone.

    Args:
        model: Its configuration is used.
        recipe: What is to be done.
        num_images: Images of the training split.
        options: ``device``, ``amp``, ``backend`` and ``grad_checkpointing`` are used.
        micro_batch: Most images that go through the model at once on a GPU; that of ``throughput`` comes first.
        throughput: Recorded earlier on a GPU, see :meth:`Throughput.read`.

    Raises:
        ConfigError: The recorded throughput is of another model or recipe, or of no GPU.
        DataError: There are fewer images than one batch.
    """
    if num_images < recipe.batch_size:
        raise DataError(
            f"The training split has {num_images} images, fewer than one batch of {recipe.batch_size}: lower "
            "batch_size, or say how many images the run will have."
        )
    if throughput is not None:
        throughput.check_fits(model.config, recipe)
        if throughput.device_type != "cuda":
            raise ConfigError(f"The recorded throughput is of {throughput.device}, which is no GPU: no times follow.")
    layout = Layout(options.amp, options.grad_checkpointing, _backends(model, options), "cuda")
    blank = _without_values(model, recipe)
    at_once = throughput.micro_batch if throughput else micro_batch
    plan = Plan(
        model=recipe.model,
        image_hw=model.config.image_hw,
        parameters=sum(p.numel() for p in blank.parameters()),
        trained=sum(p.numel() for p in blank.parameters() if p.requires_grad),
        num_images=num_images,
        batch_size=recipe.batch_size,
        steps_per_epoch=num_images // recipe.batch_size,
        total_steps=recipe.total_steps(num_images),
        warmup_steps=recipe.total_warmup_steps(num_images),
        operations=training_operations(model.config, recipe, checkpointing=options.grad_checkpointing),
        amp=options.amp,
        checkpointing=options.grad_checkpointing,
        backends=layout.backends,
        activations=_activations(blank, recipe, layout),
        gpus=_all_gpus(blank, recipe, layout, at_once),
        here=None,
        throughput=throughput,
        loading=None,
    )
    return plan.with_speeds(None, None)


def _without_values(model: Mixer, recipe: Recipe) -> Mixer:
    """The same model on the meta device, where only sizes cost anything; what the recipe leaves alone is frozen."""
    blank = Mixer.from_config(model.config, device="meta")
    if recipe.trainable == "head":
        blank.requires_grad_(False)
        blank.head.requires_grad_(True)
    return blank


def _backends(model: Mixer, options: RunOptions) -> dict[str, str]:
    """Who computes the layers on a GPU: what was asked for or, on a machine with one, what the model would choose.

    Elsewhere the plain layers, which keep most.
    """
    if options.backend not in (None, "auto"):
        return dict.fromkeys(PLAIN, str(options.backend))
    device = torch.device(options.device)
    if device.type != "cuda":
        return dict(PLAIN)
    there = Mixer.from_config(model.config, device=device).train()
    shape = (1, model.config.in_chans, *model.config.image_hw)
    with torch.autocast("cuda", torch.bfloat16, enabled=options.amp):
        report = there.explain_backend(torch.empty(shape, device="meta"))
    return {choice.op: choice.backend for choice in report}


def _activations(model: Mixer, recipe: Recipe, layout: Layout) -> dict[str, int]:
    def of(**changes: Any) -> int:
        return activation_bytes(model.config, recipe, dataclasses.replace(layout, **changes))

    return {
        "planned": of(),
        "plain layers": of(checkpointing=False, backends=PLAIN),
        "fused layers": of(checkpointing=False, backends=dict.fromkeys(PLAIN, "triton")),
        "gradient checkpointing": of(checkpointing=True),
    }


def _all_gpus(model: Mixer, recipe: Recipe, layout: Layout, most: int) -> tuple[Gpus, ...]:
    """Without hours."""
    state, result = optimizer_bytes(model, recipe), []
    for count in GPUS:
        share, rest = divmod(recipe.batch_size, count)
        if rest or not share:
            continue
        micro = max(size for size in range(1, min(most, share) + 1) if share % size == 0)

        def memory(shard: bool, count: int = count, micro: int = micro) -> Memory:
            return memory_of(model, recipe, layout, micro_batch=micro, processes=count, shard=shard, optimizer=state)

        result.append(Gpus(count, micro, share // micro, memory(False), memory(True), None))
    return tuple(result)


def _steps_text(plan: Plan) -> str:
    height, width = plan.image_hw
    trained = "" if plan.trained == plan.parameters else f" ({plan.trained:,} trained)"
    return "\n".join(
        (
            f"{plan.model}: {plan.parameters:,} parameters{trained}, images of {height} x {width} pixels",
            f"{plan.num_images:,} training images in batches of {plan.batch_size:,}: {plan.steps_per_epoch:,} steps an "
            "epoch",
            f"{plan.total_steps:,} steps, of them {plan.warmup_steps:,} warm-up: {plan.images_seen:,} images seen",
        )
    )


def _operations_text(plan: Plan) -> str:
    ops = plan.operations
    what = "forward and backward" + (", layers computed twice" if ops.recomputed else "")
    twice = "; each step passes twice (sharpness-aware minimisation)" if ops.passes == 2 else ""
    return (
        f"Operations of the matrix products, two a multiply-add, {what}{twice}:\n"
        f"{_si(ops.an_image)} an image, {_si(ops.an_image * plan.batch_size)} a step, "
        f"{_si(ops.an_image * plan.images_seen)} the run"
    )


def _bytes_text(plan: Plan) -> str:
    kept = plan.activations
    layers = " and ".join(dict.fromkeys(plan.backends.values())).replace("reference", "plain")
    how = "gradient checkpointing" if plan.checkpointing else f"{layers} layers"
    amounts = ", ".join(f"{name} {kept[name] / _MIB:,.1f} MiB" for name in kept if name != "planned")
    lines = [
        "Bytes, counted for eager execution and not measured; CUDA's own, libraries' workspaces and fragmentation come "
        "on top.",
        f"Kept for the backward pass for one image ({'bfloat16 autocast' if plan.amp else 'float32'}): {amounts}; "
        f"the table has {how}.",
        "",
    ]
    heads, columns = [], []
    for gpus in plan.gpus:
        for name in ("DDP", "FSDP") if gpus.count > 1 else ("alone",):
            memory = gpus.fsdp if name == "FSDP" else gpus.ddp
            heads.append(f"{gpus.count} x {name}" if gpus.count > 1 else "1 GPU")
            columns.append([str(gpus.micro_batch), str(gpus.accumulate), *map(_gib, vars(memory).values())])
            columns[-1].append(_gib(memory.total))
    names = [field.name.replace("_", " ") for field in dataclasses.fields(Memory)]
    rows = ["images at once", "times a step", *names, "total"]
    table = [row for row in zip(rows, *columns, strict=True) if set(row[1:]) != {_gib(0)}]
    return "\n".join(lines + _aligned([("GiB on each GPU", *heads), *table]))


def _speed_text(plan: Plan) -> str:
    lines = [f"This machine trains {plan.here}."] if plan.here else []
    if plan.loading:
        source, workers = plan.loading, plan.loading.workers
        who = f"{workers} worker process{'es' if workers > 1 else ''}" if workers else "the training process itself"
        lines.append(
            f"This machine reads and augments {source.images_per_second:,.4g} images/s with {who} "
            f"(measured over {source.images:,} images)."
        )
        if plan.here:
            slower = source.images_per_second < plan.here.images_per_second
            lines.append(
                "Reading is the limit: more workers, or a faster disk, would help."
                if slower
                else "The model is the limit, not reading."
            )
    return "\n".join(lines)


def _times_text(plan: Plan) -> str:
    if plan.throughput is None:
        return "No throughput was measured for a GPU: no times. Let a dry run on such a GPU record one."
    lines = [
        f"Times from {plan.throughput}.",
        "They assume that N GPUs are N times as fast as one, which is the best case: no waiting for each other, and "
        "smaller micro-batches as fast as the measured one. Evaluations and checkpoints come on top.",
        "",
    ]
    if plan.throughput.memory_gib is not None:
        lines.insert(1, f"One GPU's peak memory was {plan.throughput.memory_gib:.2f} GiB in that measurement.")
    rows = [(f"{g.count} GPU{'s' if g.count > 1 else ''}", _duration(g.hours or 0.0)) for g in plan.gpus]
    return "\n".join(lines + _aligned(rows))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _gib(count: int) -> str:
    return "<0.01" if 0 < count < 0.005 * _GIB else f"{count / _GIB:,.2f}"


def _si(operations: float) -> str:
    for name, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if operations >= size:
            return f"{operations / size:,.4g} {name}FLOP"
    return f"{operations:,.0f} FLOP"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
