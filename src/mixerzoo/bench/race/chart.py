"""Races as grouped horizontal bars: ours in one strong colour, everybody else in grey."""

# mypy: disable-error-code="import-untyped,import-not-found"
# (matplotlib is optional)

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixerzoo.bench.race.results import Lane, RaceResult
from mixerzoo.bench.race.table import number
from mixerzoo.bench.race.terms import OURS

_OURS, _OURS_PARTLY = "#0b6e4f", "#6fae97"
_GREYS = ("#8c8c8c", "#a6a6a6", "#bdbdbd")
_INK, _FAINT = "#222222", "#777777"
_LEGEND = "images per second, longer is better; x: how many times as fast ours is"
_BAR = 0.34  # inches from bar to bar
_MANY = 4  # races from which there are two columns
_ROOM = 1.28  # of the longest bar, for the figures behind it


def draw(results: Sequence[RaceResult], about: Mapping[str, Any], path: Path) -> str:
    """Draw races into a PNG file.

    Args:
        results: One group of bars each.
        about: Circumstances, for the title.
        path: The file.

    Returns:
        A sentence that says where the chart is, or why there is none.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "no chart: matplotlib is not installed (pip install matplotlib)"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(results) >= _MANY else 1
    rows = math.ceil(len(results) / columns)
    lanes = [[lane for lane in result.lanes if lane.counts] for result in results]
    bars = max(map(len, lanes))
    figure = Figure(figsize=(6.4 * columns + 1.0, rows * (bars * _BAR + 0.8) + 1.1), facecolor="white", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, result, shown in zip(axes, results, lanes, strict=False):
        _bars(axis, result, shown)
    for axis in list(axes)[len(results) :]:
        axis.set_visible(False)
    inch = 1 / figure.get_figheight()
    what, where = _titles(results, about)
    figure.text(0.01, 1 - 0.28 * inch, what, fontsize=13, color=_INK, weight="bold")
    figure.text(0.01, 1 - 0.5 * inch, where, fontsize=9, color=_FAINT)
    figure.text(0.01, 0.08 * inch, _LEGEND, fontsize=9, color=_FAINT)
    figure.tight_layout(rect=(0, 0.2 * inch, 1, 1 - 0.55 * inch), h_pad=1.6, w_pad=2.5)
    figure.savefig(path)
    return f"chart in {path}"


def _bars(axis: Any, result: RaceResult, lanes: Sequence[Lane]) -> None:
    rates = [result.images_per_second(lane) or 0.0 for lane in lanes]
    places = range(len(lanes))
    axis.barh(places, rates, height=0.72, color=[_colour(result, i, lane) for i, lane in enumerate(lanes)])
    for place, lane, rate in zip(places, lanes, rates, strict=True):
        ours = lane is result.lanes[0]
        text = number(rate) if ours else f"{number(rate)}   {number(result.ratio(lane), 'x')}"
        weight = "bold" if ours else "normal"
        axis.annotate(text, (rate, place), (4, 0), textcoords="offset points", va="center", color=_INK, weight=weight)
    axis.set_yticks(places, [lane.entry.label for lane in lanes], color=_INK)
    axis.invert_yaxis()
    axis.set_xlim(0, _ROOM * max(rates, default=1.0))
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(_FAINT)
    axis.set_title(f"{result.race.model}, batch {result.race.batch_size}", loc="left", fontsize=11, color=_INK)


def _colour(result: RaceResult, place: int, lane: Lane) -> str:
    if lane is result.lanes[0]:
        return _OURS
    return _OURS_PARTLY if lane.entry.contender.startswith(OURS) else _GREYS[place % len(_GREYS)]


def _titles(results: Sequence[RaceResult], about: Mapping[str, Any]) -> tuple[str, str]:
    """What was raced in what; where and when."""
    race = results[0].race
    where = about["gpu"] if race.device == "cuda" else f"{about['processor']}, {race.parallelism}"
    what = "training step" if race.training else "inference"
    dtypes = " and ".join(dict.fromkeys(result.lanes[0].entry.dtype for result in results))
    return f"MLP-Mixer {what} in {dtypes}", f"{where}, PyTorch {about['torch']}, {about['date']}"
