"""What an evaluation says class by class: a table for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixerzoo.atomic import write_atomically
from mixerzoo.inference.evaluate import Evaluation
from mixerzoo.inference.multi_label import MultiLabel

CSV_HEADINGS = ("class", "images", "top1", "confused_with", "confused_images")


@dataclass(frozen=True)
class ClassResult:
    """How a class of the data fares.

    Attributes:
        name: The class.
        num_images: Its images.
        top1: Share of them that are right; None without images.
        confused_with: The wrong class that is predicted most often for them (of equals the first), or None.
        num_confused: How often that is.
    """

    name: str
    num_images: int
    top1: float | None
    confused_with: str | None
    num_confused: int


def per_class(evaluation: Evaluation) -> list[ClassResult]:
    """One result a class, in the order of the data's classes."""
    results = []
    for label, output in enumerate(evaluation.mask.outputs):
        predicted = evaluation.predicted[evaluation.labels == label]
        hits = int((predicted == output).sum())
        wrong = predicted[(predicted != output) & (predicted >= 0)]
        counts = torch.bincount(wrong)
        worst = int(counts.argmax()) if len(wrong) else None
        results.append(
            ClassResult(
                evaluation.mask.titles[output],
                len(predicted),
                hits / len(predicted) if len(predicted) else None,
                None if worst is None else evaluation.mask.titles[worst],
                0 if worst is None else int(counts[worst]),
            )
        )
    return results


def confusion_matrix(evaluation: Evaluation) -> Tensor:
    """Counts (D, D + 1) int64: true class, predicted class; the last column is every other output or none at all."""
    count = len(evaluation.classes)
    place = torch.full((len(evaluation.mask.titles) + 1,), count, dtype=torch.int64)  # the last one is found by -1
    place[torch.tensor(evaluation.mask.outputs)] = torch.arange(count)
    pairs = evaluation.labels * (count + 1) + place[evaluation.predicted]
    return torch.bincount(pairs, minlength=count * (count + 1)).reshape(count, count + 1)


def class_table(results: Sequence[ClassResult]) -> str:
    """A table for a terminal, the worst class last, but for those without images."""
    ordered = sorted(results, key=lambda result: 1.0 if result.top1 is None else -result.top1)
    rows = [("class", "images", "top-1", "most confused with")]
    for result in ordered:
        other = "" if result.confused_with is None else f"{shortened(result.confused_with)} ({result.num_confused})"
        rows.append((shortened(result.name), str(result.num_images), _percent(result.top1), other))
    return aligned(rows, "<>><")


def multi_label_table(found: MultiLabel) -> str:
    """Average precision of every class for a terminal."""
    rows = [("class", "images", "average precision")]
    for name, count, value in zip(found.classes, found.positives, found.average_precision, strict=True):
        rows.append((shortened(name), str(count), _percent(value)))
    return aligned(rows, "<>>")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def shortened(name: str, limit: int = 60) -> str:
    """The name, cut to so many characters."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def aligned(rows: Sequence[Sequence[str]], alignment: str) -> str:
    """Rows of text in columns, each ``<`` or ``>``, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(alignment))]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, alignment, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def write_class_csv(results: Sequence[ClassResult], path: Path) -> None:
    """Write one line a class, in the order of the classes; shares are fractions, empty for none.

    Raises:
        StorageError: The file cannot be written.
    """
    rows = [(r.name, r.num_images, _fraction(r.top1), r.confused_with or "", r.num_confused) for r in results]
    _write_csv(path, [CSV_HEADINGS, *rows])


def write_multi_label_csv(found: MultiLabel, path: Path) -> None:
    """Write class, images and average precision (a fraction, empty where it is not defined), one line a class.

    Raises:
        StorageError: The file cannot be written.
    """
    rows = zip(found.classes, found.positives, map(_fraction, found.average_precision), strict=True)
    _write_csv(path, [("class", "images", "average_precision"), *rows])


def _fraction(share: float | None) -> str:
    return "" if share is None else f"{share:.6f}"


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_bytes(text.getvalue().encode()))
