"""A confusion matrix as a picture that can be read with ten classes and with a thousand."""

# mypy: disable-error-code="import-untyped,import-not-found"
# (matplotlib is optional)

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mixerzoo.atomic import write_atomically
from mixerzoo.errors import ConfigError
from mixerzoo.inference.evaluation_report import shortened

_OTHER = "another class"
_LEGEND = "green: right, by its share; red: wrong, by the square root of its share, so that rare mistakes show"
_INK, _FAINT, _RIGHT, _WRONG = "#222222", "#777777", "#0b6e4f", "#b3401f"
_NAMED = 60  # classes up to which rows and columns bear names
_PRINTED = 20  # classes up to which every cell bears its share
_CELLS = 200  # classes up to which each has a row of its own; more are drawn in blocks
_BLOCKS = 100  # rows that they are drawn in
_LISTED = 20  # lines of a list beside the matrix
_RARE = 2  # images up to which a confusion is listed only if all of as many are
_NAME = 26  # characters of a name


def draw_confusion(counts: Tensor, names: Sequence[str], title: str, path: Path) -> None:
    """Draw a confusion matrix into a PNG file: rows are true classes, columns predicted ones, a row sums to 100 %.

    Right predictions are green, wrong ones red and stronger than their share (its square root), so that rare mistakes
    show. The most frequent confusions stand beside it by name.

    Args:
        counts: (D, D + 1), as :func:`mixerzoo.inference.evaluation_report.confusion_matrix` gives them.
        names: D names.
        title: The first line.
        path: The file.

    Raises:
        ConfigError: matplotlib is not installed.
        StorageError: The file cannot be written.
    """
    check_drawable()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = counts.double().numpy()
    if not table[:, -1].any():
        table = table[:, :-1]  # nothing was taken for a class that the data does not have
    texts = [shortened(name, _NAME) for name in names]
    side = 5.0 if len(names) <= 12 else 7.5 if len(names) <= _CELLS else 9.0
    figure = Figure(figsize=(side + 5.2, side + 1.1), facecolor="white", dpi=150)
    FigureCanvasAgg(figure)
    matrix, lists = figure.subplots(1, 2, width_ratios=(side, 3.4))
    _draw_matrix(matrix, table, texts)
    _draw_lists(lists, table, texts, side)
    figure.text(0.012, 1 - 0.3 / figure.get_figheight(), title, fontsize=13, color=_INK, weight="bold", va="center")
    figure.text(0.012, 0.14 / figure.get_figheight(), _LEGEND, fontsize=8, color=_FAINT, va="center")
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1 - 0.45 / figure.get_figheight()), w_pad=2.0)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def check_drawable() -> None:
    """Raise ConfigError unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("A picture needs matplotlib: pip install 'mixerzoo[train]'.")


def _draw_matrix(axis: Any, table: Any, names: Sequence[str]) -> None:
    classes, columns = table.shape
    block = -(-classes // _BLOCKS) if classes > _CELLS else 1
    shares, right = _blocks(table, block)
    axis.imshow(_colours(shares, right), aspect="auto", extent=(0, block * len(shares[0]), block * len(shares), 0))
    grouped = f", in blocks of {block} classes" if block > 1 else ""
    by = "class" if classes <= _NAMED else "class index"
    axis.set_xlabel(f"predicted {by}, % of the true class{grouped}", color=_FAINT)
    axis.set_ylabel(f"true {by}", color=_FAINT)
    axis.xaxis.set_label_position("top")
    axis.tick_params(length=0, labelcolor=_INK, top=False, labeltop=True, labelbottom=False)
    axis.spines[:].set_color("#dddddd")
    if classes > _NAMED:
        axis.tick_params(labelcolor=_FAINT)
        return
    few = classes <= _PRINTED
    headings = [*names, _OTHER][:columns]
    axis.set_yticks(np.arange(classes) + 0.5, names, fontsize=9 if few else 6)
    turn: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if few else {"rotation": 90}
    axis.set_xticks(np.arange(columns) + 0.5, headings, fontsize=9 if few else 6, **turn)
    for (row, column), share in np.ndenumerate(shares):
        if few and share >= 0.0005:
            text = percent(share) if share >= 0.0095 else percent(share, 1).removeprefix("0")
            colour = "white" if share > (0.5 if row == column else 0.25) else _INK
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)


def percent(share: float, decimals: int = 0) -> str:
    """A share as a number of percent, halves rounded up: 0.125 is 13."""
    nudge = 1e-9  # a half may have become a little less than that in floating point
    return f"{math.floor(100 * share * 10**decimals + 0.5 + nudge) / 10**decimals:.{decimals}f}"


def _blocks(table: Any, block: int) -> tuple[Any, Any]:
    """Shares (B, columns) of each block of true classes, and of its images that are right (B,)."""
    starts = np.arange(0, len(table), block)
    summed = np.add.reduceat(np.add.reduceat(table, starts, axis=0), _starts_of_columns(table, starts), axis=1)
    images = np.maximum(summed.sum(axis=1), 1.0)
    right = np.add.reduceat(np.diagonal(table), starts)
    return summed / images[:, None], right / images


def _starts_of_columns(table: Any, starts: Any) -> Any:
    """The blocks of the classes, and what was taken for none of them on its own."""
    return starts if table.shape[0] == table.shape[1] else np.append(starts, table.shape[0])


def _colours(shares: Any, right: Any) -> Any:
    """RGB (B, columns, 3): white to green on the diagonal, white to red elsewhere."""
    green, red = (np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0 for colour in (_RIGHT, _WRONG))
    pixels = 1.0 - np.sqrt(shares)[..., None] * (1.0 - red)
    places = np.arange(len(right))
    pixels[places, places] = 1.0 - right[:, None] * (1.0 - green)
    return pixels


def _draw_lists(axis: Any, table: Any, names: Sequence[str], side: float) -> None:
    """The most frequent confusions, and below them the hardest classes if not every one is in the matrix by number."""
    headings = [*names, _OTHER]
    pairs, left_out = top_confusions(table)
    lines = [(f"{int(count)}", f"{names[row]} → {headings[column]}") for row, column, count in pairs]
    if left_out:
        lines.append(("", f"{left_out} more"))
    listed = [("Most frequent confusions (images)", lines)]
    if len(names) > _PRINTED:
        images = table.sum(axis=1)
        top1 = np.diagonal(table) / np.maximum(images, 1.0)
        hardest = [i for i in np.argsort(top1, kind="stable") if images[i] > 0][: _LISTED // 2]
        listed.append(("Hardest classes (top-1, %)", [(percent(top1[i]), names[i]) for i in hardest]))
    axis.set_axis_off()
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    y, step = 1.0, 0.23 / side  # of the axis' height: not quite a quarter of an inch a line
    for heading, texts in listed:
        axis.text(0.0, y, heading, fontsize=10, color=_INK, va="center")
        for number, text in texts or [("", "none")]:
            y -= step
            axis.text(0.11, y, number, ha="right", va="center", fontsize=8, color=_WRONG)
            axis.text(0.14, y, text, va="center", fontsize=8, color=_INK)
        y -= 2 * step


def top_confusions(table: Any) -> tuple[list[tuple[int, int, float]], int]:
    """The most frequent confusions, of equals those of the first classes, and how many more there are.

    Where a confusion of one or two images would stand there and another of as many would not, none of them does: they
    are chance.

    Args:
        table: (D, D) or (D, D + 1) counts.

    Returns:
        True class, predicted class and images of each; and the number of the others.
    """
    wrong = table.copy()
    np.fill_diagonal(wrong, 0.0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    shown = order[:_LISTED].tolist()
    if len(order) > len(shown):
        next_one = wrong.flat[order[len(shown)]]
        if next_one <= _RARE:
            shown = [i for i in shown if wrong.flat[i] > next_one]
    pairs = [(*divmod(i, wrong.shape[1]), float(wrong.flat[i])) for i in shown]
    return pairs, len(order) - len(pairs)
