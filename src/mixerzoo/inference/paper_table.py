"""Published scores of every released checkpoint beside what this machine measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mixerzoo.data.images import find_images
from mixerzoo.errors import (
    DataError,
    ImageError,
    MixerzooError,
    ModelNameError,
    StorageError,
    did_you_mean,
    listed,
)
from mixerzoo.factory import create_model
from mixerzoo.inference.class_masks import synsets
from mixerzoo.inference.eval_data import eval_folder
from mixerzoo.inference.evaluate import Evaluation, evaluate_folder
from mixerzoo.inference.evaluation_report import aligned
from mixerzoo.inference.real_labels import is_validation_image
from mixerzoo.inference.scoring import EvalOptions, agreed
from mixerzoo.weights.files import WEIGHTS_FILE
from mixerzoo.weights.hub import cached
from mixerzoo.weights.official import entry_folder, read_record
from mixerzoo.zoo import CIFAR10_LABELS, WEIGHTS, Score, WeightTag

METRICS: Mapping[str, tuple[str, str]] = {
    "ImageNet top-1": ("ImageNet", "top1"),
    "ImageNet top-5": ("ImageNet", "top5"),
    "ImageNet ReaL": ("ImageNet", "real"),
    "ImageNet V2 top-1": ("ImageNet-V2", "top1"),
    "ImageNet R top-1": ("ImageNet-R", "top1"),
    "ImageNet Sketch top-1": ("ImageNet-Sketch", "top1"),
    "ImageNet A top-1": ("ImageNet-A", "top1"),
    "CIFAR-10 top-1": ("CIFAR-10", "top1"),
    "CIFAR-10 top-5": ("CIFAR-10", "top5"),
}
"""For each metric that can be measured here the dataset, and what of its evaluation it is; in the order of the rows."""

_DATASETS = tuple(dict.fromkeys(dataset for dataset, _ in METRICS.values()))

_HEADINGS = ("weights", "metric", "paper", "timm", "stated here", "measured", "images")


@dataclass(frozen=True)
class TableRow:
    """One metric of one checkpoint, all in percent; None where nobody says or nothing was measured.

    Attributes:
        name: ``variant.tag``.
        metric: As in the zoo's rows.
        paper: By the paper that the weights come from.
        timm: By timm's result files.
        stated: By this package, when the weights were made.
        measured: Now, on this machine.
        num_images: Images of that measurement.
    """

    name: str
    metric: str
    paper: float | None = None
    timm: float | None = None
    stated: float | None = None
    measured: float | None = None
    num_images: int | None = None


@dataclass(frozen=True)
class PaperTable:
    """Rows, and why some are not measured.

    Attributes:
        rows: Checkpoints in the zoo's order, the metrics of each in that of :data:`METRICS`, others last.
        missing: One sentence for each reason.
    """

    rows: tuple[TableRow, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        """The table for a terminal."""
        cells = [(r.name, r.metric, *map(_percent, (r.paper, r.timm, r.stated, r.measured))) for r in self.rows]
        counts = ["" if r.num_images is None else str(r.num_images) for r in self.rows]
        return aligned([_HEADINGS, *((*row, n) for row, n in zip(cells, counts, strict=True))], "<<>>>>>")


def paper_table(
    folders: Iterable[str | Path] = (),
    *,
    model: str | None = None,
    download: bool = False,
    options: EvalOptions | None = None,
) -> PaperTable:
    """Compare published scores with this machine's, for every released checkpoint.

    A checkpoint has a row for each published metric, and for each that the data given can measure. A download or an
    image that fails leaves its cells empty, with the reason among ``missing``.

    Args:
        folders: Datasets; what each is, is known by its class folders (see :func:`recognise`).
        model: Only this ``variant.tag``.
        download: Fetch weights that are not on this machine.
        options: How to run.

    Raises:
        DataError: A folder is not recognised, or two are the same dataset.
        ModelNameError: There is no such tag.
    """
    options = options or EvalOptions()
    if model is not None and model not in WEIGHTS:
        raise ModelNameError(f"--model {model}: the table has no such weights.{did_you_mean(model, WEIGHTS)}")
    data = agreed(options.world, lambda: _recognised(folders))
    measuring = _Measuring(data, download, options)
    tags = [tag for tag in WEIGHTS.values() if model in (None, tag.name)]
    rows = [row for tag in tags for row in _rows(tag, measuring.run(tag), measuring.metrics(tag))]
    return PaperTable(tuple(rows), tuple(_reasons(tags, rows, measuring)))


def recognise(folder: str | Path) -> str:
    """Name the dataset that a folder holds, by its class folders (and for Sketch by the names of its files).

    Returns:
        ``"ImageNet"``, ``"ImageNet-V2"``, ``"ImageNet-R"``, ``"ImageNet-Sketch"``, ``"ImageNet-A"`` or ``"CIFAR-10"``.

    Raises:
        DataError: It is none of them.
    """
    root = eval_folder(folder)
    classes = {path.name for path in root.iterdir() if path.is_dir()}
    if classes == set(CIFAR10_LABELS):
        return "CIFAR-10"
    if classes == {str(i) for i in range(1000)}:
        return "ImageNet-V2"
    for name in ("ImageNet-R", "ImageNet-A"):
        if classes == set(synsets(name.lower())):
            return name
    if classes == set(synsets("imagenet-1k")):
        return "ImageNet-Sketch" if _first_image(root).name.startswith("sketch") else "ImageNet"
    raise DataError(
        f"{folder} is none of the datasets of the table: the class folders in {root} must be those of ImageNet's "
        "validation set, ImageNet-V2, -R, -A or -Sketch, or of CIFAR-10."
    )


def local_weights(tag: WeightTag) -> Path | None:
    """The weights' file if it is on this machine; no request is made."""
    if tag.asset:
        return Path(__file__).parent.parent / "assets" / tag.asset
    if tag.hub_id and (found := cached(tag.hub_id, WEIGHTS_FILE)):
        return found
    with suppress(StorageError):
        if tag.npz_url and read_record(entry_folder(tag.npz_url), tag.npz_url):
            return entry_folder(tag.npz_url) / WEIGHTS_FILE
    return None


def scorable(tag: WeightTag) -> tuple[str, ...]:
    """The datasets whose classes the weights' outputs have."""
    if tag.label_set == "cifar-10":
        return ("CIFAR-10",)
    if tag.label_set == "imagenet-1k":
        return tuple(name for name in _DATASETS if name.startswith("ImageNet"))
    # Of ImageNet-21k all classes of a set must be there; the folders of V2 are numbers, which mean ImageNet-1k's.
    known = set(synsets(tag.label_set))
    named = {"ImageNet": "imagenet-1k", "ImageNet-R": "imagenet-r", "ImageNet-A": "imagenet-a"}
    return tuple(name for name, classes in named.items() if known >= set(synsets(classes)))


def _first_image(root: Path) -> Path:
    try:
        return find_images([min(path for path in root.iterdir() if path.is_dir())])[0]
    except ImageError as error:
        raise DataError(str(error)) from None


def _recognised(folders: Iterable[str | Path]) -> dict[str, Path]:
    """The folders by what they are, in the order of :data:`METRICS`."""
    data: dict[str, Path] = {}
    for folder in map(Path, folders):
        dataset = recognise(folder)
        if dataset in data:
            raise DataError(f"{data[dataset]} and {folder} are both {dataset}: give one of them.")
        data[dataset] = folder
    return {name: data[name] for name in _DATASETS if name in data}


class _Measuring:
    """Measures checkpoint after checkpoint; what fails becomes a note, and the rest goes on."""

    def __init__(self, data: dict[str, Path], download: bool, options: EvalOptions):
        self.data, self.download, self.options = dict(data), download, options
        self.absent: list[str] = []
        self.notes: list[str] = []
        self.failed: set[str] = set()  # datasets that cannot be read
        self._real = False
        if "ImageNet" in data:
            self._real = is_validation_image(_first_image(eval_folder(data["ImageNet"])))
            if not self._real:
                self.notes.append(
                    f"ReaL is not measured: the files in {data['ImageNet']} are not named ILSVRC2012_val_00000001.JPEG."
                )

    def metrics(self, tag: WeightTag) -> list[str]:
        """What the data can say of these weights."""
        given = self.data.keys() & set(scorable(tag))
        return [metric for metric, (name, part) in METRICS.items() if name in given and (part != "real" or self._real)]

    def run(self, tag: WeightTag) -> dict[str, Evaluation]:
        """The evaluation on each dataset that can be evaluated."""
        world = self.options.world
        wanted = [name for name in self.data if name in scorable(tag)]
        if not wanted and not tag.scores:
            return {}
        where = local_weights(tag)
        if not all(world.gather(where is not None)) and not self.download:
            self.absent.append(tag.name)
            return {}
        if not set(wanted) - self.failed:
            return {}
        # A file that is here already is named, so that nobody is asked whether there is a newer one.
        known = {"file": str(where)} if where is not None else None
        try:
            model = agreed(
                world,
                lambda: create_model(tag.name, pretrained=True, pretrained_cfg_overlay=known).to(world.device),
                first_alone=True,
            )
        except MixerzooError as error:
            self.notes.append(f"{tag.name} is not measured: {error}")
            return {}
        found = {}
        for name in wanted:
            if name not in self.failed and (result := self._evaluate(model, name)):
                found[name] = result
        return found

    def _evaluate(self, model: nn.Module, name: str) -> Evaluation | None:
        try:
            return evaluate_folder(model, self.data[name], real=name == "ImageNet" and self._real, options=self.options)
        except MixerzooError as error:  # of the data: it would be the same with other weights
            self.failed.add(name)
            self.notes.append(f"{name} is not measured: {error}")
            return None


def _rows(tag: WeightTag, found: Mapping[str, Evaluation], measurable: Sequence[str]) -> list[TableRow]:
    rows = []
    published = dict.fromkeys(score.metric for score in tag.scores)
    wanted = [metric for metric in METRICS if metric in published or metric in measurable]
    for metric in [*wanted, *(metric for metric in published if metric not in METRICS)]:
        said = {_column(score): score.percent for score in tag.scores if score.metric == metric}
        dataset, part = METRICS.get(metric, ("", ""))
        result = found.get(dataset)
        by = None if result is None else result.real if part == "real" else result.accuracy
        measured = None if by is None else 100 * getattr(by, "top1" if part == "real" else part)
        count = None if by is None else by.num_images
        rows.append(
            TableRow(tag.name, metric, said.get("paper"), said.get("timm"), said.get("stated"), measured, count)
        )
    return rows


def _column(score: Score) -> str:
    return "timm" if score.source.startswith("timm") else "stated" if score.source.startswith("measured") else "paper"


def _reasons(tags: Sequence[WeightTag], rows: Sequence[TableRow], measuring: _Measuring) -> list[str]:
    reasons = []
    if measuring.absent:
        names = ", ".join(measuring.absent)
        reasons.append(f"Weights that are not on this machine: {names} (--download fetches them).")
    empty = {METRICS[row.metric][0] for row in rows if row.measured is None and row.metric in METRICS}
    if needed := empty - measuring.data.keys():
        reasons.append(f"Data that was not given: {', '.join(sorted(needed))} (--data FOLDER, as often as need be).")
    if others := {row.metric for row in rows if row.metric not in METRICS}:
        reasons.append(f"Not measured by this command: {listed(others)}.")
    shown = {row.name for row in rows}
    without: dict[tuple[str, ...], list[str]] = {}
    for tag in tags:
        if tag.name not in shown:
            without.setdefault(scorable(tag), []).append(tag.name)
    for datasets, missing in without.items():
        reasons.append(
            f"No row for {', '.join(missing)}: no figure is published, and nothing was given that has their classes "
            f"({', '.join(datasets)})."
        )
    return [*reasons, *dict.fromkeys(measuring.notes)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
