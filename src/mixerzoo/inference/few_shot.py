"""Few-shot accuracy: a linear classifier on frozen features, by least squares in closed form.

The paper's measure of what a pretrained model's features are worth (section 3). The procedure is the official one
(google-research/big_vision, ``evaluators/fewshot_lsr.py``): features are standardised by the few training images'
mean and deviation, a large constant is appended so that the bias is hardly regularised, targets are +1 for the class
and -1 for every other, and the weights minimise the squared error plus ``l2`` times their squared norm.

N training images, C features, K classes; everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from mixerzoo.checks import check_integer, check_number
from mixerzoo.errors import ConfigError, DataError, listed
from mixerzoo.inference.eval_data import open_eval_folder
from mixerzoo.inference.scoring import EvalOptions, agreed, collect

BIAS = 100.0
"""The constant feature; large, so that regularisation hardly holds its weight back."""

_MIN_STD = 1e-5  # added to every deviation, for features that do not vary


@dataclass(frozen=True)
class LeastSquares:
    """A fitted classifier.

    Attributes:
        mean: (C,) of the training features.
        std: (C,) of the training features, plus a little.
        weights: (C + 1, K); the last row is the constant's.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Features (N, C) -> scores (N, K) float64."""
        return _standardised(features, self.mean, self.std) @ self.weights


def fit_least_squares(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    l2: float = 2.0**10,
    form: Literal["primal", "dual"] | None = None,
) -> LeastSquares:
    """Solve ``min_W |X W - Y|^2 + l2 |W|^2`` for standardised features X and targets Y in {-1, 1}.

    Args:
        features: (N, C).
        labels: (N,) integers in [0, ``num_classes``).
        num_classes: K.
        l2: Weight of the penalty, above 0; the official default is 2^10.
        form: ``"primal"`` inverts (C + 1, C + 1), ``"dual"`` (N, N): the same solution. None takes the smaller.

    Raises:
        ConfigError: ``l2`` is not above 0.
    """
    check_number("l2", l2, above=0.0)
    features = features.double().cpu()
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0) + _MIN_STD
    x = _standardised(features, mean, std)
    y = 2.0 * nn.functional.one_hot(labels.cpu().long(), num_classes).double() - 1.0
    rows, columns = x.shape
    if form == "dual" or (form is None and rows < columns):
        weights = x.T @ _solve(x @ x.T, y, l2)
    else:
        weights = _solve(x.T @ x, x.T @ y, l2)
    return LeastSquares(mean, std, weights)


def _standardised(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    x = (features.double().cpu() - mean) / std
    return nn.functional.pad(x, (0, 1), value=BIAS)


def _solve(gram: Tensor, right: Tensor, l2: float) -> Tensor:
    """``(gram + l2 I)^-1 right`` for a symmetric, positive semi-definite ``gram``."""
    factor = torch.linalg.cholesky(gram + l2 * torch.eye(len(gram), dtype=gram.dtype))
    return torch.cholesky_solve(right, factor)


def choose_shots(
    labels: Sequence[int], num_classes: int, shots: int, seed: int, *, names: Sequence[str] | None = None
) -> list[list[int]]:
    """Indices of ``shots`` images of each class, by chance; fewer shots of a seed are the first of more.

    Args:
        labels: Class of each image.
        num_classes: Classes, of which each must have that many images.
        shots: Images a class.
        seed: Of NumPy's generator, which permutes one class after the other (as the official code does).
        names: Of the classes, for the message.

    Raises:
        DataError: A class has fewer images.
    """
    generator, own = np.random.default_rng(seed), np.asarray(labels)
    chosen = [generator.permutation(np.flatnonzero(own == label)).tolist() for label in range(num_classes)]
    fewest = min(range(num_classes), key=lambda label: len(chosen[label]))
    if len(chosen[fewest]) < shots:
        count = len(chosen[fewest])
        raise DataError(
            f"Class {fewest if names is None else names[fewest]} of the training split has only {count} "
            f"image{'' if count == 1 else 's'}; {shots} shots need as many of every class."
        )
    return [indices[:shots] for indices in chosen]


def few_shot_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    shots: Sequence[int] = (1, 5, 10, 25),
    l2: float = 2.0**10,
    seed: int = 0,
) -> dict[int, float]:
    """Top-1 accuracy of least-squares classifiers fitted on a few images of each class.

    Args:
        features: (N, C) of the images to choose from.
        labels: (N,) int64.
        test_features: (M, C).
        test_labels: (M,) int64.
        num_classes: K; each class needs as many training images as the largest of ``shots``.
        shots: Training images of each class.
        l2: See :func:`fit_least_squares`.
        seed: See :func:`choose_shots`.

    Returns:
        The share of test images that are right, for each number of shots.

    Raises:
        DataError: A class has too few images.
        ConfigError: A number that cannot be used.
    """
    for number in shots:
        check_integer("shots", number, minimum=1)
    chosen = choose_shots(labels.tolist(), num_classes, max(shots), seed)
    result = {}
    for number in shots:
        rows = torch.tensor([index for own in chosen for index in own[:number]])
        fitted = fit_least_squares(features[rows], labels[rows], num_classes, l2=l2)
        result[number] = _accuracy(fitted, test_features, test_labels)
    return result


def _accuracy(fitted: LeastSquares, features: Tensor, labels: Tensor) -> float:
    hits = fitted.scores(features).argmax(dim=-1) == labels.cpu()
    return hits.double().mean().item()


@dataclass(frozen=True)
class FewShot:
    """What :func:`evaluate_few_shot` finds.

    Attributes:
        accuracy: Top-1 for each number of shots, one for each seed, as fractions of ``num_images``.
        num_images: Images of the test split.
        classes: Names of the classes.
        l2: Weight of the penalty.
    """

    accuracy: Mapping[int, tuple[float, ...]]
    num_images: int
    classes: tuple[str, ...]
    l2: float

    def mean(self, shots: int) -> float:
        """Average over the seeds."""
        return sum(self.accuracy[shots]) / len(self.accuracy[shots])


def evaluate_few_shot(
    model: nn.Module,
    data: str | Path,
    *,
    shots: Sequence[int] = (5,),
    l2: float = 2.0**10,
    seeds: Sequence[int] = (0, 1, 2),
    split: str | None = None,
    options: EvalOptions | None = None,
) -> FewShot:
    """Few-shot accuracy of a model's pooled features on a folder of images; its head plays no part.

    Only the chosen training images are read, with the preprocessing for evaluation, and all of the test split.

    Args:
        model: A Mixer or an optimized one.
        data: Folder with ``train/<class>/*.jpg`` and a test split of the same classes.
        shots: Training images of each class.
        l2: See :func:`fit_least_squares`.
        seeds: Each chooses other training images.
        split: Name of the test split; None for ``test``, ``val`` or ``validation``.
        options: How to run.

    Raises:
        DataError: A split is missing, the splits have other classes, or a class has too few images.
        ConfigError: The model does not pool its tokens, or a number cannot be used.
    """
    for number in shots:
        check_integer("shots", number, minimum=1)
    check_number("l2", l2, above=0.0)
    options = options or EvalOptions()
    features_of = _pooled(model)
    train, test = agreed(
        options.world, lambda: (open_eval_folder(model, data, "train"), open_eval_folder(model, data, split))
    )
    names = train.classes
    if names != test.classes:
        sides = {"training": set(names) - set(test.classes), "test": set(test.classes) - set(names)}
        only = " and ".join(f"only the {side} split has {listed(odd)}" for side, odd in sides.items() if odd)
        raise DataError(f"The two splits in {data} have other classes: {only}.")
    chosen = [choose_shots(train.targets, len(names), max(shots), seed, names=names) for seed in seeds]
    used = sorted({index for choice in chosen for own in choice for index in own})
    subset: Dataset[Any] = Subset(train, used)
    features, labels = collect(model, subset, options, what="features", forward=features_of)
    test_features, test_labels = collect(model, test, options, what="features", forward=features_of)
    place = {index: i for i, index in enumerate(used)}
    accuracy: dict[int, list[float]] = {number: [] for number in shots}
    for choice in chosen:
        for number in shots:
            rows = torch.tensor([place[index] for own in choice for index in own[:number]])
            fitted = fit_least_squares(features[rows], labels[rows], len(names), l2=l2)
            accuracy[number].append(_accuracy(fitted, test_features, test_labels))
    frozen = {number: tuple(values) for number, values in accuracy.items()}
    return FewShot(frozen, len(test_labels), tuple(names), l2)


def _pooled(model: nn.Module) -> Any:
    """Images (N, in_chans, H, W) -> pooled features (N, C)."""
    if not hasattr(model, "forward_features") or getattr(model, "global_pool", "") != "avg":
        raise ConfigError("Few-shot evaluation takes a Mixer that pools its tokens (global_pool='avg').")
    whole: Any = model
    return lambda images: whole.forward_head(whole.forward_features(images), pre_logits=True)
