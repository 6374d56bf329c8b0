"""Class predictions for image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from mixerzoo.data.images import load_image
from mixerzoo.errors import ConfigError, ImageError, ModelNameError
from mixerzoo.factory import create_transform, labels

_Item: TypeAlias = "str | Path | Image.Image"
_Key: TypeAlias = tuple[int, str]


@dataclass(frozen=True)
class Prediction:
    """What a model sees in one image, most probable class first.

    Attributes:
        source: The image's path, or its position in the input for images in memory.
        labels: Names of the classes; their indices as text where the model's classes have no names.
        probabilities: Softmax of the logits for those classes.
        error: Why there is no prediction, or None.
    """

    source: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Iterable[_Item],
    *,
    top_k: int = 5,
    batch_size: int = 16,
    threads: int = 2,
) -> Iterator[Prediction]:
    """Classify images with the model's own preprocessing, in the order given.

    Files are read and decoded in threads while the model runs. The model is put into evaluation mode.

    Args:
        model: A classifier from :func:`mixerzoo.create_model`.
        images: Paths, or PIL images.
        top_k: How many classes to return for each (at most all).
        batch_size: Images that go through the model together.
        threads: Threads that read files.

    Yields:
        One :class:`Prediction` an image; one that cannot be read has ``error`` set, and the others go on.

    Raises:
        ConfigError: ``top_k`` or ``batch_size`` is less than 1, or the model has no head or another number of
            channels than 1 or 3.
    """
    if top_k < 1 or batch_size < 1:
        raise ConfigError(f"top_k={top_k} and batch_size={batch_size} must be at least 1.")
    num_classes, channels = getattr(model, "num_classes", 0), getattr(model, "in_chans", 3)
    if num_classes < 1:
        raise ConfigError("The model has no classification head (num_classes=0): create it with one to predict.")
    if channels not in (1, 3):
        raise ConfigError(f"The model takes {channels} channels; image files give 1 or 3. Call the model on tensors.")
    names = _names(model, num_classes)
    transform = create_transform(model)
    mode: Literal["RGB", "L"] = "L" if channels == 1 else "RGB"
    parameter = next(model.parameters())
    model.eval()

    def prepare(item: _Item) -> Tensor:
        return transform(item.convert(mode) if isinstance(item, Image.Image) else load_image(item, mode))

    with ThreadPoolExecutor(threads) as pool:
        for sources, pending in _batches(pool, prepare, images, batch_size):
            ready, errors = _gather(sources, pending)
            if ready:
                batch = torch.stack(list(ready.values())).to(parameter.device, parameter.dtype)
                scores = model(batch).float().softmax(dim=-1).topk(min(top_k, num_classes), dim=-1)
            rows = {source: row for row, source in enumerate(ready)}
            for position, source in sources:
                if (position, source) in errors:
                    yield Prediction(source, error=errors[position, source])
                    continue
                row = rows[position, source]
                yield Prediction(
                    source,
                    tuple(names[i] for i in scores.indices[row].tolist()),
                    tuple(scores.values[row].tolist()),
                )


def _batches(
    pool: ThreadPoolExecutor, prepare: Callable[[_Item], Tensor], images: Iterable[_Item], batch_size: int
) -> Iterator[tuple[list[_Key], list[Future[Tensor]]]]:
    """Submit one batch ahead, so that files are read while the model runs on the batch before."""
    numbered = enumerate(images)
    ahead: tuple[list[_Key], list[Future[Tensor]]] | None = None
    while chunk := list(islice(numbered, batch_size)):
        keys = [(i, str(i) if isinstance(item, Image.Image) else str(item)) for i, item in chunk]
        pending = [pool.submit(prepare, item) for _, item in chunk]
        if ahead is not None:
            yield ahead
        ahead = keys, pending
    if ahead is not None:
        yield ahead


def _gather(keys: list[_Key], pending: list[Future[Tensor]]) -> tuple[dict[_Key, Tensor], dict[_Key, str]]:
    ready: dict[_Key, Tensor] = {}
    errors: dict[_Key, str] = {}
    for key, future in zip(keys, pending, strict=True):
        failure = future.exception()
        if isinstance(failure, ImageError):
            errors[key] = str(failure)
        else:
            ready[key] = future.result()
    return ready, errors


def _names(model: nn.Module, num_classes: int) -> list[str]:
    try:
        return labels(model)
    except ModelNameError:
        return [str(i) for i in range(num_classes)]
