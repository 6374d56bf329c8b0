"""What a model says of a labelled dataset, each image counted once whatever the number of processes.

N images of the dataset, n of a batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from tqdm import tqdm

from mixerzoo.checks import check_integer
from mixerzoo.data.folder import in_one_line
from mixerzoo.distributed import World
from mixerzoo.errors import DataError, MixerzooError, WeightsError

_T = TypeVar("_T")

NOT_FINITE = (
    "are not finite numbers (NaN or infinite): the weights are damaged, their training diverged, or their numeric "
    "type is too narrow."
)


@dataclass(frozen=True)
class EvalOptions:
    """How an evaluation uses its machines; the result does not depend on it, but for ``amp``.

    Attributes:
        world: The processes that share the work; every one of them makes the same calls.
        amp: Run under bfloat16 autocast.
        batch_size: Images at once, of each process.
        workers: Processes that read images for each process; 0 reads in the process itself.
        progress: Show a progress bar (on the first process, on a terminal).

    Raises:
        ConfigError: A number that cannot be used.
    """

    world: World = field(default_factory=World)
    amp: bool = False
    batch_size: int = 128
    workers: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        """Validate the numbers."""
        check_integer("batch_size", self.batch_size, minimum=1)
        check_integer("workers", self.workers, minimum=0)


def agreed(world: World, make: Callable[[], _T], *, first_alone: bool = False) -> _T:
    """What ``make`` gives on each process, or one error on all of them: then none waits for those that stopped.

    Args:
        world: The processes; all of them call this.
        make: What to do.
        first_alone: The first process does it before the others, so that files are downloaded once.

    Raises:
        MixerzooError: As ``make`` raises on the first of the processes that fail.
    """
    made: list[_T] = []
    for turn in (world.is_first, not world.is_first) if first_alone else (True,):
        failure: MixerzooError | None = None
        if turn:
            try:
                made.append(make())
            except MixerzooError as error:
                failure = error
        failures = [found for found in world.gather(failure) if found is not None]
        if failures:
            raise failure or failures[0]
    return made[0]


@torch.no_grad()
def run_over(
    model: nn.Module,
    data: Dataset[Any],
    options: EvalOptions,
    forward: Callable[[Tensor], Tensor] | None = None,
    *,
    num_classes: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a model over a dataset in evaluation mode; its training flag is restored.

    Process r of R takes the images r, r + R, ... of a dataset with indices; an ``IterableDataset`` gives each process
    (and each of its workers) that one's own share. Every process runs the same number of batches, because the model's
    parameters may be spread over them: who has fewer images repeats some, and what comes of these is dropped here.

    Args:
        model: Maps images to outputs; it is on ``options.world.device``, or moves images itself and has no parameters.
        data: Gives pairs of an image and a target.
        options: How to run.
        forward: What to run; None for the model itself.
        num_classes: Targets must be less than this; None does not ask.

    Yields:
        Outputs (n, K) and targets (n, ...), on the outputs' device, of this process's own images; n may be 0.

    Raises:
        DataError: There is not a single image, one cannot be read, or a target is out of range; on every process.
    """
    run, world = forward or model, options.world
    parameter = next(model.parameters(), None)
    was_training = model.training
    total = None if isinstance(data, IterableDataset) else len(cast(Sized, data))  # of a stream it is not known
    hidden = None if options.progress and world.is_first else True
    seen = 0
    model.eval()
    try:
        with tqdm(total=total, desc="evaluate", unit="image", disable=hidden, leave=False) as bar:
            for images, targets, own in _batches(data, options, num_classes):
                if parameter is not None:
                    images = images.to(world.device, parameter.dtype, non_blocking=True)
                with torch.autocast(world.device.type, torch.bfloat16, enabled=options.amp):
                    outputs = run(images)
                seen += own
                step = len(images) * world.size
                bar.update(step if total is None else min(step, total - bar.n))
                yield outputs[:own], targets[:own].to(outputs.device, non_blocking=True)
    finally:
        model.train(was_training)
    if not int(world.sum(torch.tensor(seen))):
        raise DataError("There are no images to evaluate on.")


def _batches(data: Dataset[Any], options: EvalOptions, num_classes: int | None) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Images, targets, and how many of them count, equally often on every process."""
    world = options.world

    def load(part: Dataset[Any]) -> Iterator[tuple[Tensor, Tensor] | None]:
        pinned = world.device.type == "cuda"
        loader = DataLoader(part, options.batch_size, num_workers=options.workers, pin_memory=pinned)
        return _together(_in_range(in_one_line(loader), num_classes), world)

    if isinstance(data, IterableDataset):
        yield from _to_the_end(load(data), world)
        return
    count = len(cast(Sized, data))
    left = len(range(world.rank, count, world.size))
    rounds = -(-count // world.size)
    indices = [min(world.rank + i * world.size, count - 1) for i in range(rounds)]
    for batch in load(Subset(data, indices)):
        assert batch is not None  # every process has the same number
        own = min(left, len(batch[0]))
        left -= own
        yield batch[0], batch[1], own


def _in_range(batches: Iterable[tuple[Tensor, Tensor]], num_classes: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    for images, targets in batches:
        if num_classes is not None and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
            wrong = int(targets.max()) if int(targets.min()) >= 0 else int(targets.min())
            raise DataError(f"The data has a label {wrong}; its classes are 0 to {num_classes - 1}.")
        yield images, targets


def _together(batches: Iterator[_T], world: World) -> Iterator[_T | None]:
    """Batches until every process's have ended, None where one's own have; an error of one is raised by all."""
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except MixerzooError as error:
            if world.size == 1:
                raise
            failure = error
        here = int(batch is not None)
        if world.size > 1:
            here, failed = world.sum(torch.tensor([here, int(failure is not None)])).tolist()
            if failed:
                failures = [found for found in world.gather(failure) if found is not None]
                raise failure or failures[0]
        if not here:
            return
        yield batch


def _to_the_end(batches: Iterable[tuple[Tensor, Tensor] | None], world: World) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Batches of a stream; when it ends, its last batch again, not counted, until every process's has ended."""
    last = None
    for batch in batches:
        if last is None and world.size > 1:  # a process without any image needs something to run on
            last = next(found for found in world.gather(_blank(batch)) if found is not None)
        own = 0 if batch is None else len(batch[0])
        last = batch or last
        assert isinstance(last, list | tuple)
        yield last[0], last[1], own


def _blank(batch: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if batch is None else (torch.zeros_like(batch[0][:1]), torch.zeros_like(batch[1][:1]))


def judge(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compare scores with labels; of equal scores the class that comes first is ahead.

    Args:
        outputs: Scores (n, K).
        labels: (n,) int64 in [0, K).

    Returns:
        The class (n,) with the highest score, and the label's place (n,) among all, from 0; both int64. Where a score
        of the image is not finite they are -1 and -1.

    Raises:
        DataError: A label is not one of the outputs.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[-1]:
        wrong = int(labels.max()) if int(labels.min()) >= 0 else int(labels.min())
        raise DataError(
            f"The data has a label {wrong}, but the model's {outputs.shape[-1]} outputs are numbered from 0."
        )
    own = outputs.gather(1, labels[:, None])
    before = torch.arange(outputs.shape[-1], device=outputs.device) < labels[:, None]
    place = ((outputs > own) | ((outputs == own) & before)).sum(dim=-1)
    finite = outputs.isfinite().all(dim=-1)
    return outputs.argmax(dim=-1).where(finite, -1), place.where(finite, -1)


def in_order(rows: Tensor, world: World, *, interleaved: bool) -> Tensor:
    """The rows of every process together, on the CPU of each.

    Args:
        rows: (n, ...) of this process; n may differ, the rest must not.
        world: The processes; all of them call this.
        interleaved: Process r's rows are the numbers r, r + R, ... of the whole; else they stand one after another.

    Returns:
        (N, ...) of the same type.
    """
    if world.size == 1:
        return rows.cpu()
    counts = world.gather(len(rows))
    first = sum(counts[: world.rank])
    mine = slice(world.rank, None, world.size) if interleaved else slice(first, first + len(rows))
    whole = torch.zeros((sum(counts), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    whole[mine] = rows
    return world.sum(whole)


def collect(
    model: nn.Module,
    data: Dataset[Any],
    options: EvalOptions,
    *,
    what: str,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Every output and target of a dataset, in its order, on the CPU of every process.

    Args:
        model: As for :func:`run_over`.
        data: As for :func:`run_over`.
        options: As for :func:`run_over`.
        what: What the outputs are, for the message.
        forward: As for :func:`run_over`.

    Returns:
        Outputs (N, K) float32 and targets (N, ...).

    Raises:
        DataError: See :func:`run_over`.
        WeightsError: An output is not finite.
    """
    outputs, targets = [], []
    for output, target in run_over(model, data, options, forward):
        outputs.append(output.float().cpu())
        targets.append(target.cpu())
    ordered = not isinstance(data, IterableDataset)
    rows = in_order(torch.cat(outputs), options.world, interleaved=ordered)
    invalid = int((~rows.isfinite().all(dim=-1)).sum())
    if invalid:
        raise WeightsError(f"The model's {what} for {invalid} of {len(rows)} images {NOT_FINITE}")
    return rows, in_order(torch.cat(targets), options.world, interleaved=ordered)
