"""The curves of a run as a picture: loss and top-1 above, learning rate below."""

# mypy: disable-error-code="import-untyped,import-not-found"
# (matplotlib is optional)

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixerzoo.atomic import write_atomically
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.train.watch import read_log

_LOSS, _TOP1, _LR = "#1f5fa8", "#c2571a", "#5b6770"
_INK, _FAINT, _GRID = "#222222", "#777777", "#e4e4e4"
_SMOOTH = 40  # a curve of more points than this gets a smoothed one over it
_AIR = 0.03  # of the length, behind the last of few points
_WINDOW = 0.04  # of all points, that the smoothed curve averages

Points = tuple[list[float], list[float]]


def check_drawing() -> None:
    """Raise ConfigError unless curves can be drawn here; call it before a run, not after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("Drawing the curves needs matplotlib: pip install 'mixerzoo[train]'.")


def draw_curves(metrics_path: Path, png_path: Path, *, title: str = "") -> None:
    """Draw the log of a run (see :mod:`mixerzoo.train.watch`) into a PNG file, in one move.

    Args:
        metrics_path: ``metrics.jsonl``.
        png_path: The picture.
        title: What to write above; the recipe's name, for instance.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: The log has no training step.
        StorageError: The picture cannot be written.
    """
    check_drawing()
    lines = read_log(metrics_path)
    unit = "epoch" if any(line.get("epoch") is not None for line in lines) else "step"
    loss, top1, lr = (_points(lines, unit, name) for name in ("loss", "top1", "lr"))
    if not loss[0]:
        raise DataError(f"{metrics_path} has no finished training step, so there is nothing to draw.")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.2), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw_loss(above, loss)
    if top1[0]:
        _draw_top1(above.twinx(), top1)
        above.set_title(_in_words(top1[1]), loc="right", fontsize=11, color=_TOP1, weight="bold", pad=10)
    below.plot(*lr, color=_LR, linewidth=1.4, marker=_marker(lr), markersize=2.5, clip_on=False)
    below.set_ylim(bottom=0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    below.yaxis.get_offset_text().set(color=_FAINT, fontsize=8)
    _dress(below, "learning rate", _LR)
    below.set_xlabel(unit, color=_INK)
    end = max(loss[0][-1], *top1[0]) if top1[0] else loss[0][-1]
    below.set_xlim(min(0.0, loss[0][0]), (1 + _AIR) * end if _marker(loss) else end)
    last = max(line["step"] for line in lines)
    steps = f"{last:,} step{'s' if last > 1 else ''}"
    heading = f"{title}: {steps}" if title else steps
    above.set_title(heading, loc="left", fontsize=12, color=_INK, weight="bold", pad=10)
    write_atomically(png_path, lambda path: _save(figure, path))


def _save(figure: Any, path: Path) -> None:
    with path.open("wb") as file:
        figure.savefig(file, format="png")


def _points(lines: Sequence[dict[str, Any]], unit: str, name: str) -> Points:
    pairs = [(line[unit], line[name]) for line in lines if line.get(name) is not None and line.get(unit) is not None]
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def _marker(points: Points) -> str:
    """Few points are marked: one alone makes no line."""
    return "o" if len(points[0]) <= _SMOOTH else ""


def _draw_loss(axis: Any, points: Points) -> None:
    places, values = points
    smooth = len(values) > _SMOOTH
    if smooth:
        axis.plot(places, values, color=_LOSS, linewidth=0.9, alpha=0.3)
        values = _smoothed(values)
    axis.plot(
        places, values, color=_LOSS, linewidth=1.8, marker=_marker(points), markersize=3.5, clip_on=False, zorder=3
    )
    if len(values) == 1:
        axis.set_ylim(0, 1.1 * values[0] or 1)
    _dress(axis, "training loss", _LOSS)


def _draw_top1(axis: Any, points: Points) -> None:
    places, values = points[0], [100 * value for value in points[1]]
    axis.plot(places, values, color=_TOP1, linewidth=1.8, marker=_marker(points), markersize=3.5, clip_on=False)
    if len(values) == 1:
        axis.set_ylim(0, 100)
    _dress(axis, "top-1 in %", _TOP1)
    axis.grid(False)
    axis.spines["right"].set_visible(True)
    axis.spines["right"].set_color(_GRID)


def _in_words(top1: Sequence[float]) -> str:
    """The last accuracy, which is the run's result, and the best if that is another."""
    last, best = (f"{100 * value:.2f} %" for value in (top1[-1], max(top1)))
    return f"top-1 {last}" if last == best else f"top-1 {last} (best {best})"


def _dress(axis: Any, label: str, colour: str) -> None:
    axis.set_ylabel(label, color=colour)
    axis.tick_params(axis="y", colors=colour, length=0)
    axis.tick_params(axis="x", colors=_FAINT, length=0)
    axis.grid(True, color=_GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(_FAINT)


def _smoothed(values: Sequence[float]) -> list[float]:
    """A moving mean over both sides; at the steep start its window shrinks, at the end it keeps what lies behind."""
    half = max(2, round(len(values) * _WINDOW / 2))
    result = []
    for i in range(len(values)):
        behind = min(half, i)
        window = values[i - behind : i + behind + 1]
        result.append(sum(window) / len(window))
    return result
