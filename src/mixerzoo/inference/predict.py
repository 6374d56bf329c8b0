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

from mixerzoo.checks import check_integer
from mixerzoo.data.images import as_mode, find_images, load_image
from mixerzoo.errors import ConfigError, ImageError, LabelsUnknownError
from mixerzoo.factory import create_transform
from mixerzoo.label_names import labels

_Item: TypeAlias = "Path | Image.Image"


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


def predict(
    model: nn.Module,
    images: str | Path | Image.Image | Iterable[str | Path | Image.Image],
    *,
    top_k: int = 5,
    batch_size: int = 16,
    threads: int = 2,
) -> Iterator[Prediction]:
    """Classify images with the model's own preprocessing, in the order given.

    Files are read and decoded in threads while the model runs. The model predicts in evaluation mode; its training
    flag is restored after every batch.

    Args:
        model: A classifier from :func:`mixerzoo.create_model` or :func:`mixerzoo.optimize`.
        images: One image or several: files, folders (searched recursively) and PIL images.
        top_k: How many classes to return for each (at most all).
        batch_size: Images that go through the model together.
        threads: Threads that read files.

    Returns:
        An iterator with one :class:`Prediction` an image; one that cannot be read has ``error`` set, and the others
        go on.

    Raises:
        ConfigError: ``top_k``, ``batch_size`` or ``threads`` is less than 1, or the model has no head, does not pool
            its tokens, or takes another number of channels than 1 or 3.
        ImageError: A path does not exist, or a folder holds no image (while iterating).
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size), ("threads", threads)):
        check_integer(name, value, minimum=1)
    if not hasattr(model, "num_classes"):
        raise ConfigError(
            f"predict takes a model from create_model, not a {type(model).__name__}; of a wrapper such as DataParallel "
            "give the model inside."
        )
    num_classes, channels = getattr(model, "num_classes", 0), getattr(model, "in_chans", 3)
    if num_classes < 1 or getattr(model, "global_pool", "avg") != "avg":
        raise ConfigError(
            "The model gives no class scores: it has no classification head (num_classes=0), or does not pool its "
            "tokens (global_pool='')."
        )
    if channels not in (1, 3):
        raise ConfigError(f"The model takes {channels} channels; image files give 1 or 3. Call the model on tensors.")
    return _predict(model, _expand(images), num_classes, min(top_k, num_classes), batch_size, threads)


def _expand(images: str | Path | Image.Image | Iterable[str | Path | Image.Image]) -> Iterator[_Item]:
    for item in [images] if isinstance(images, str | Path | Image.Image) else images:
        if isinstance(item, Image.Image):
            yield item
        elif Path(item).is_dir():
            yield from find_images([item])
        else:
            yield Path(item)


def _predict(
    model: nn.Module, items: Iterator[_Item], num_classes: int, top_k: int, batch_size: int, threads: int
) -> Iterator[Prediction]:
    names = _class_names(model, num_classes)
    transform = create_transform(model)
    mode: Literal["RGB", "L"] = "L" if getattr(model, "in_chans", 3) == 1 else "RGB"
    parameter = next(model.parameters(), torch.empty(0))  # an optimized model has none and moves images itself

    def read(source: str, item: _Item) -> Tensor | ImageError:
        try:
            if isinstance(item, Image.Image):
                return transform(as_mode(item, mode, f"image {source}"))
            return transform(load_image(item, mode))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        for batch in _read_ahead(pool, read, items, batch_size):
            outcomes = [(source, future.result()) for source, future in batch]
            tensors = [outcome for _, outcome in outcomes if isinstance(outcome, Tensor)]
            ranked = iter(_rank(model, torch.stack(tensors).to(parameter), top_k) if tensors else ())
            for source, outcome in outcomes:
                if isinstance(outcome, ImageError):
                    yield Prediction(source, error=str(outcome))
                else:
                    indices, probabilities = next(ranked)
                    yield Prediction(source, tuple(names[i] for i in indices), tuple(probabilities))


def _read_ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[str, _Item], Tensor | ImageError],
    items: Iterator[_Item],
    batch_size: int,
) -> Iterator[list[tuple[str, Future[Tensor | ImageError]]]]:
    """Submit one batch ahead, so that files are read while the model runs on the batch before."""
    numbered = enumerate(items)
    ahead = None
    while chunk := list(islice(numbered, batch_size)):
        named = [(str(i if isinstance(item, Image.Image) else item), item) for i, item in chunk]
        submitted = [(source, pool.submit(read, source, item)) for source, item in named]
        if ahead is not None:
            yield ahead
        ahead = submitted
    if ahead is not None:
        yield ahead


@torch.no_grad()
def _rank(model: nn.Module, images: Tensor, top_k: int) -> Iterator[tuple[list[int], list[float]]]:
    was_training = model.training
    model.eval()
    try:
        probabilities, indices = model(images).float().softmax(dim=-1).topk(top_k, dim=-1)
    finally:
        model.train(was_training)
    return zip(indices.tolist(), probabilities.tolist(), strict=True)


def _class_names(model: nn.Module, num_classes: int) -> list[str]:
    try:
        return labels(model)
    except LabelsUnknownError:
        return [str(i) for i in range(num_classes)]
