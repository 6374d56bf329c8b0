"""Accuracy of a classifier on a labelled dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from mixerzoo.data.naming import kind_of
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError
from mixerzoo.inference.class_masks import ClassMask, class_mask, imagenet_outputs, numbered_mask
from mixerzoo.inference.eval_data import eval_splits, open_eval_folder, open_eval_hub, open_eval_shards
from mixerzoo.inference.real_labels import RealAccuracy, real_accuracy
from mixerzoo.inference.scoring import EvalOptions, agreed, in_order, judge, run_over

_FIVE = 5


@dataclass(frozen=True)
class Accuracy:
    """Shares of correctly classified images, as fractions of ``num_images``.

    Attributes:
        top1: The label's score is the highest; of equal scores the first class's counts as higher.
        top5: The label's score is among the five highest (of all, with fewer than five classes).
        num_images: Images that were counted, each once.
        num_invalid: Those among them whose scores are not all finite numbers; they count as wrong.
    """

    top1: float
    top5: float
    num_images: int
    num_invalid: int = 0

    def in_words(self, num_classes: int | None = None) -> str:
        """``"top-1 83.91 %, top-5 99.04 % of 10000 images"``; top-5 is left out where it cannot but be 100 %.

        Args:
            num_classes: Classes whose scores were compared; None if that is not known.
        """
        top5 = f", top-5 {100 * self.top5:.2f} %" if num_classes is None or num_classes > _FIVE else ""
        return f"top-1 {100 * self.top1:.2f} %{top5} of {self.num_images} images"


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_data` finds; N images, of D classes.

    Attributes:
        accuracy: Top-1 and top-5.
        real: Accuracy by the ReaL labels, if that was asked for.
        classes: The data's class names; where it has none, the numbers of those that occur.
        mask: Which outputs they are, and what was compared.
        labels: (N,) int64, class of each image among ``classes``.
        predicted: (N,) int64, output with the highest score among those compared; -1 where a score is not finite.
    """

    accuracy: Accuracy
    real: RealAccuracy | None
    classes: tuple[str, ...]
    mask: ClassMask
    labels: Tensor = field(repr=False)
    predicted: Tensor = field(repr=False)


def evaluate(
    model: nn.Module,
    data: Dataset[Any],
    *,
    world: World | None = None,
    amp: bool = False,
    batch_size: int = 128,
    workers: int = 0,
    progress: bool = False,
) -> Accuracy:
    """Count correct predictions in evaluation mode; the model's training flag is restored.

    Every process of a job calls this alike and gets the total, in which each image counts once.

    Args:
        model: Maps images (N, channels, H, W) to logits (N, classes); on ``world.device``, or one from
            :func:`mixerzoo.optimize`. It may be wrapped for DDP or sharded with FSDP2.
        data: Gives pairs of an image and its output's index. Process r of R takes the images r, r + R, ...; of an
            ``IterableDataset`` it takes all that its own copy gives.
        world: The job; None for this process alone, on the CPU.
        amp: Run under bfloat16 autocast.
        batch_size: Images at once, of each process.
        workers: Processes that read images, of each process.
        progress: Show a progress bar.

    Raises:
        DataError: There is not a single image, one cannot be read, or a label is not one of the outputs.
        ConfigError: ``batch_size`` or ``workers`` cannot be used.
    """
    options = EvalOptions(world or World(), amp, batch_size, workers, progress)
    counts = torch.zeros(4, dtype=torch.int64)
    for outputs, labels in run_over(model, data, options):
        counts += _count(judge(outputs, labels)[1]).cpu()
    return _accuracy(options.world.sum(counts))


def evaluate_folder(
    model: nn.Module,
    data: str | Path,
    *,
    split: str | None = None,
    real: bool = False,
    restrict: bool | None = None,
    options: EvalOptions | None = None,
) -> Evaluation:
    """Evaluate a model on a folder of images, with its own preprocessing.

    Args:
        model: A classifier from :func:`mixerzoo.create_model` or :func:`mixerzoo.optimize`.
        data: Folder with ``<split>/<class>/*.jpg``, or with the class folders themselves. How classes are matched to
            outputs: :func:`mixerzoo.inference.class_masks.class_mask`.
        split: Name of the split; None for ``test``, ``val`` or ``validation``, whichever there is.
        real: Score by the ReaL labels too; for ImageNet's validation images under their original names.
        restrict: Compare only the scores of the data's classes; None does so for ImageNet-R and ImageNet-A.
        options: How to run.

    Raises:
        DataError: The split is missing or empty, an image cannot be read, or a class is not one of the model's.
        ConfigError: The model takes another number of channels than 1 or 3.
    """
    options = options or EvalOptions()
    dataset = agreed(options.world, lambda: open_eval_folder(model, data, split))
    files = [name for name, _ in dataset.samples] if real else None
    return evaluate_classes(model, dataset, dataset.classes, files=files, restrict=restrict, options=options)


def evaluate_data(
    model: nn.Module,
    where: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    restrict: bool | None = None,
    options: EvalOptions | None = None,
) -> Evaluation:
    """Evaluate a model on data of any kind, with the model's own preprocessing.

    Args:
        model: As for :func:`evaluate_folder`.
        where: A folder as for :func:`evaluate_folder`; tar shards as for
            :func:`mixerzoo.inference.eval_data.open_eval_shards`; a data set of the Hugging Face Hub as for
            :func:`mixerzoo.inference.eval_data.open_eval_hub`. Where classes have no names, labels are taken for the
            numbers of the model's outputs.
        split: Name of the split.
        image_column: Of a data set of the Hub.
        label_column: Of a data set of the Hub.
        restrict: As for :func:`evaluate_folder`.
        options: How to run.

    Raises:
        DataError: See :func:`evaluate_folder`.
        ConfigError: A package is missing, or what was asked for is not for data of this kind.
    """
    options = options or EvalOptions()
    world, kind = options.world, kind_of(where, eval_splits(split))
    if kind != "hub" and (image_column or label_column):
        raise ConfigError(f"Columns are for hf: data, and {where} is none: leave them out.")
    if kind == "folder":
        return evaluate_folder(model, where, split=split, restrict=restrict, options=options)
    if kind == "shards":
        found = agreed(world, lambda: open_eval_shards(model, where, split, world))
    else:
        found = agreed(
            world,
            lambda: open_eval_hub(model, where, split, image_column=image_column, label_column=label_column),
            first_alone=True,  # it downloads
        )
    return evaluate_classes(model, found.images, found.classes, restrict=restrict, options=options)


def evaluate_classes(
    model: nn.Module,
    data: Dataset[Any],
    classes: Sequence[str] | None,
    *,
    files: Sequence[str | Path] | None = None,
    restrict: bool | None = None,
    options: EvalOptions | None = None,
) -> Evaluation:
    """Evaluate a model on any dataset.

    Args:
        model: As for :func:`evaluate_folder`.
        data: Gives pairs of an image, preprocessed for the model, and the index of its class in ``classes``.
        classes: Names of the classes; None: labels are the numbers of the outputs.
        files: Names of the images in order, to score by the ReaL labels too.
        restrict: As for :func:`evaluate_folder`; not without names.
        options: How to run.

    Raises:
        DataError: See :func:`evaluate_folder`.
        ConfigError: ``restrict`` without names.
    """
    options = options or EvalOptions()
    outputs_1k = imagenet_outputs(model) if files is not None else []
    mask = numbered_mask(model, restrict) if classes is None else class_mask(model, classes, restrict=restrict)
    if files is not None:
        real_accuracy(files, [-1] * len(files), outputs_1k)  # a wrong name is found before the work, not after
    compared, targets = mask.compared(), mask.targets()
    columns = compared if mask.restricted else None
    rows = []
    for outputs, labels in run_over(model, data, options, num_classes=len(targets)):
        labels = labels.cpu()
        scores = outputs if columns is None else outputs[:, columns.to(outputs.device)]
        predicted, place = (x.cpu() for x in judge(scores, targets[labels].to(scores.device)))
        rows.append(torch.stack([labels, compared[predicted].where(predicted >= 0, -1), place], dim=1))
    ordered = not isinstance(data, IterableDataset)
    labels, predicted, place = in_order(torch.cat(rows), options.world, interleaved=ordered).unbind(dim=1)
    scored = None if files is None else real_accuracy(files, predicted.tolist(), outputs_1k)
    if classes is None:  # those that do not occur are no classes of the data, as far as can be known
        present, labels = torch.unique(labels, return_inverse=True)
        mask = replace(mask, outputs=tuple(present.tolist()))
        classes = [str(output) for output in mask.outputs]
    return Evaluation(_accuracy(_count(place)), scored, tuple(classes), mask, labels, predicted)


def _count(place: Tensor) -> Tensor:
    """Images that are right, right among five, counted, and invalid: int64 (4,)."""
    valid = place >= 0
    return torch.stack(
        [
            (place == 0).sum(),
            (valid & (place < _FIVE)).sum(),
            valid.new_tensor(len(place), dtype=torch.int64),
            (~valid).sum(),
        ]
    )


def _accuracy(counts: Tensor) -> Accuracy:
    top1, top5, count, invalid = counts.tolist()
    return Accuracy(top1 / count, top5 / count, count, invalid)
