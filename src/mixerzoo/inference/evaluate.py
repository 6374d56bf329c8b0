"""Accuracy of a classifier on a labelled dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mixerzoo.data.folder import in_one_line
from mixerzoo.errors import DataError


@dataclass(frozen=True)
class Accuracy:
    """Shares of correctly classified images, as fractions of ``num_images``.

    Attributes:
        top1: The highest score is the label's.
        top5: The label's score is among the five highest (of all, with fewer than five classes).
        num_images: Images that were counted.
    """

    top1: float
    top5: float
    num_images: int


def eval_batches(dataset: Dataset[Any], workers: int = 0, batch_size: int = 512) -> DataLoader[Any]:
    """Batches of a labelled dataset in its order, the last one smaller."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str = "cpu",
    amp: bool = False,
    progress: bool = False,
) -> Accuracy:
    """Count correct predictions in evaluation mode; the model's training flag is restored.

    Args:
        model: Maps images (N, channels, H, W) to logits (N, classes).
        batches: Pairs of images and integer labels (N,), a ``DataLoader`` for instance.
        device: Where the model is and the images go.
        amp: Run under bfloat16 autocast.
        progress: Show a progress bar.

    Raises:
        DataError: There is not a single image, or one cannot be read.
    """
    device = torch.device(device)
    was_training = model.training
    model.eval()
    top1 = top5 = count = 0
    bar = tqdm(batches, desc="evaluate", unit="batch", disable=None if progress else True, leave=False)
    try:
        for images, labels in in_one_line(bar):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                logits = model(images)
            ranked = logits.float().topk(min(5, logits.shape[-1]), dim=-1).indices
            hits = ranked == labels[:, None]
            top1 += int(hits[:, 0].sum())
            top5 += int(hits.any(dim=-1).sum())
            count += len(labels)
    finally:
        model.train(was_training)
    if count == 0:
        raise DataError("There are no images to evaluate on.")
    return Accuracy(top1 / count, top5 / count, count)
