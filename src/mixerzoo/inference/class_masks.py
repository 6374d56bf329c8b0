"""Which of a model's outputs the classes of a dataset are.

A dataset names its classes by folders: by the model's own names, by WordNet synsets (``n01440764``; all of ImageNet
or a subset such as ImageNet-R and ImageNet-A), or by numbers (ImageNet-V2).
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from mixerzoo.errors import ConfigError, DataError, LabelsUnknownError, listed
from mixerzoo.label_names import labels

LABEL_SETS: Mapping[int, str] = {1000: "imagenet-1k", 11221: "imagenet-21k-miil", 21843: "imagenet-21k-goog"}
"""ImageNet label sets by their number of classes, as timm tells them apart."""

_FEW = 0.05  # share of names that may differ from the outputs' in the same order


@dataclass(frozen=True)
class ClassMask:
    """How the D classes of a dataset stand to the K outputs of a model.

    Attributes:
        outputs: For each class of the data, in label order, its output.
        titles: For each output, what to call it in tables.
        restricted: Only the scores of the data's own classes are compared.
        how: How classes and outputs were matched, a clause.
    """

    outputs: tuple[int, ...]
    titles: tuple[str, ...]
    restricted: bool
    how: str

    def compared(self) -> Tensor:
        """Outputs that take part, ascending: int64 (D,) if restricted, else (K,)."""
        return torch.tensor(sorted(self.outputs)) if self.restricted else torch.arange(len(self.titles))

    def targets(self) -> Tensor:
        """For each class of the data its position among :meth:`compared`: int64 (D,)."""
        wanted = torch.tensor(self.outputs)
        return torch.searchsorted(self.compared(), wanted)


@cache
def synsets(label_set: str) -> tuple[str, ...]:
    """WordNet synsets in the order of a label set, or ascending for ``"imagenet-r"`` and ``"imagenet-a"``.

    Source: the lists that timm ships.
    """
    if label_set in ("imagenet-r", "imagenet-a"):
        text = pkgutil.get_data("timm.data", f"_info/{label_set.replace('-', '_')}_synsets.txt")
        assert text is not None
        return tuple(text.decode().split())
    return tuple(ImageNetInfo(label_set).label_names())


def class_mask(model: nn.Module, classes: Sequence[str], *, restrict: bool | None = None) -> ClassMask:
    """Find the outputs that belong to the classes of a dataset.

    Tried in this order: the model's own class names; synsets, where the outputs are an ImageNet label set (known from
    the names, or from the number of outputs if there are none); numbers of outputs; for ImageNet's outputs as many
    names of which at least 95 % are those of the same output (of two cranes, some lists call one otherwise); and for a
    model without class names, the order of the data's classes if there are as many.

    Args:
        model: A classifier.
        classes: The data's class names in label order.
        restrict: Compare only the scores of the data's own classes. None does so for ImageNet-R and ImageNet-A
            (known by their 200 synsets), as their authors do, and compares all scores elsewhere.

    Raises:
        DataError: A class is none of the model's.
    """
    count = _count(model)
    names, label_set = _own_names(model), _label_set(model)
    ways: list[tuple[str, dict[str, int]]] = []
    if names:
        uses = Counter(names)  # ImageNet has two cranes; such a name says nothing
        ways.append(("matched by name", {name: i for i, name in enumerate(names) if uses[name] == 1}))
    if label_set:
        ways.append(("matched by synset", {name: i for i, name in enumerate(synsets(label_set))}))
    ways.append(("class names are the numbers of the outputs", {str(i): i for i in range(count)}))
    how, known = next(((how, known) for how, known in ways if known.keys() >= set(classes)), ("", {}))
    if known:
        outputs = tuple(known[name] for name in classes)
    else:
        how, outputs = _in_order(classes, names, label_set), tuple(range(count))
    if not how or len(outputs) != len(classes):
        raise DataError(_unknown(classes, [known for _, known in ways], count))
    if restrict is None:
        restrict = set(classes) in (set(synsets("imagenet-r")), set(synsets("imagenet-a")))
    return ClassMask(outputs, _titles(names, label_set, count), restrict, how)


def numbered_mask(model: nn.Module, restrict: bool | None = None) -> ClassMask:
    """For data without class names, whose labels are the numbers of the outputs.

    Raises:
        DataError: The model has no classes.
        ConfigError: ``restrict``: which classes the data has is not known.
    """
    count = _count(model)
    if restrict:
        raise ConfigError("The data's classes have no names, so scores cannot be compared among them alone.")
    titles = _titles(_own_names(model), _label_set(model), count)
    return ClassMask(tuple(range(count)), titles, False, "labels are the numbers of the outputs")


def imagenet_outputs(model: nn.Module) -> list[int]:
    """The model's output for each of the 1,000 ImageNet classes.

    Raises:
        DataError: The model lacks some of them, or its outputs are not an ImageNet label set.
    """
    try:
        return list(class_mask(model, synsets("imagenet-1k")).outputs)
    except DataError:
        label_set = _label_set(model)
    lacking = set(synsets("imagenet-1k")) - set(synsets(label_set) if label_set else ())
    without = f", without {listed(lacking)}" if label_set else ""
    raise DataError(f"ReaL labels need a model with ImageNet-1k's classes; this one has {_count(model)}{without}.")


def _count(model: nn.Module) -> int:
    count = int(getattr(model, "num_classes", 0))
    if count < 1:
        raise DataError("The model has no classification head, so there are no classes to compare (num_classes=0).")
    return count


def _in_order(classes: Sequence[str], names: Sequence[str] | None, label_set: str | None) -> str:
    """Why the data's classes, if there are as many, may be taken for the outputs as they come; empty: they may not."""
    if not names and not label_set:
        return "in order, the model's classes have no names"
    expected = _descriptions(label_set) if label_set else []
    differ = sum(one != other for one, other in zip(classes, expected, strict=False))
    alike = len(classes) == len(expected) and differ <= _FEW * len(expected)
    return f"in order, {differ} of the names differ" if alike else ""


def _own_names(model: nn.Module) -> list[str] | None:
    try:
        return labels(model)
    except LabelsUnknownError:
        return None


def _label_set(model: nn.Module) -> str | None:
    label_set, names = LABEL_SETS.get(int(getattr(model, "num_classes", 0))), _own_names(model)
    if label_set is None or (names is not None and names != _descriptions(label_set)):
        return None
    return label_set


def _descriptions(label_set: str) -> list[str]:
    return list(ImageNetInfo(label_set).label_descriptions())


def _titles(names: Sequence[str] | None, label_set: str | None, count: int) -> tuple[str, ...]:
    if label_set:
        texts = zip(synsets(label_set), _descriptions(label_set), strict=True)
        return tuple(f"{synset} {text.split(',')[0]}" for synset, text in texts)
    return tuple(names) if names else tuple(str(i) for i in range(count))


def _unknown(classes: Sequence[str], ways: list[dict[str, int]], count: int) -> str:
    missing = min((sorted(set(classes) - known.keys()) for known in ways), key=len)
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{len(missing)} of the data's {len(classes)} classes {verb} none of the model's {count} classes: "
        f"{listed(missing)}. Classes must be named as the model's, as ImageNet synsets (n01440764) for an ImageNet "
        "model, or by the number of the output."
    )
