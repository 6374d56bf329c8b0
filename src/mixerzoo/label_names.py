"""Names of classes."""

from __future__ import annotations

from functools import cache

from timm.data import ImageNetInfo
from torch import nn

from mixerzoo.errors import LabelsUnknownError
from mixerzoo.names import get_pretrained_cfg
from mixerzoo.zoo import CIFAR10_LABELS, MISLABELLED, WEIGHTS


def labels(model_or_name: nn.Module | str) -> list[str]:
    """Class names in the order of the model's outputs.

    ImageNet's are timm's WordNet descriptions. A model whose head was replaced or never loaded, or that stems from an
    unlabelled repository, has none.

    Args:
        model_or_name: A model, or any name that :func:`mixerzoo.create_model` takes.

    Raises:
        ModelNameError: There is no such name.
        LabelsUnknownError: The classes have no known names.
    """
    if isinstance(model_or_name, str):
        cfg = get_pretrained_cfg(model_or_name).to_dict()
        outputs = cfg.get("num_classes")
    else:
        cfg = getattr(model_or_name, "pretrained_cfg", None) or {}
        outputs = getattr(model_or_name, "num_classes", None)
    named = isinstance(model_or_name, str) or getattr(model_or_name, "pretrained_head", True)
    if named and outputs == cfg.get("num_classes"):
        if cfg.get("label_names"):
            return list(cfg["label_names"])
        name = f"{cfg.get('architecture')}.{cfg.get('tag')}"
        row = WEIGHTS.get(MISLABELLED.get(name, name))
        if row is not None and row.num_classes == outputs:
            return list(_released_labels(row.label_set))
    raise LabelsUnknownError(
        "The names of this model's classes are not known: they come with a released tag, or as label_names in the "
        "config.json of a folder or Hub repository."
    )


@cache
def _released_labels(label_set: str) -> tuple[str, ...]:
    if label_set == "cifar-10":
        return CIFAR10_LABELS
    return tuple(ImageNetInfo(label_set).label_descriptions())
