"""Published scores of every released checkpoint beside what this machine measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mixerzoo.data.images import find_images
from mixerzoo.errors import DataError, ImageError, ModelNameError, StorageError, did_you_mean, listed
from mixerzoo.factory import create_model
from mixerzoo.inference.class_masks import synsets
from mixerzoo.inference.eval_folder import eval_folder
from mixerzoo.inference.evaluate import Evaluation, evaluate_folder
from mixerzoo.inference.evaluation_report import aligned
from mixerzoo.inference.real_labels import is_validation_image
from mixerzoo.inference.scoring import EvalOptions
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
"""For each metric that can be measured here the dataset, and what of its evaluation it is."""

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
        rows: In the zoo's order.
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
    """Compare published scores with this machine's, for every checkpoint whose weights and data are here.

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
    data: dict[str, Path] = {}
    for folder in map(Path, folders):
        dataset = recognise(folder)
        if dataset in data:
            raise DataError(f"{data[dataset]} and {folder} are both {dataset}: give one of them.")
        data[dataset] = folder
    rows: list[TableRow] = []
    absent: list[str] = []
    notes: list[str] = []
    for tag in [tag for tag in WEIGHTS.values() if tag.scores and model in (None, tag.name)]:
        wanted = {METRICS[s.metric][0] for s in tag.scores if s.metric in METRICS} & data.keys()
        where = local_weights(tag)
        found: dict[str, Evaluation] = {}
        if where is None and not download:
            absent.append(tag.name)
        elif wanted:
            found = _measure(tag, where, {name: data[name] for name in sorted(wanted)}, options, notes)
        rows += _rows(tag, found)
    return PaperTable(tuple(rows), tuple(_reasons(rows, absent, data)) + tuple(dict.fromkeys(notes)))


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


def _first_image(root: Path) -> Path:
    try:
        return find_images([min(path for path in root.iterdir() if path.is_dir())])[0]
    except ImageError as error:
        raise DataError(str(error)) from None


def _measure(
    tag: WeightTag, where: Path | None, data: Mapping[str, Path], options: EvalOptions, notes: list[str]
) -> dict[str, Evaluation]:
    # A file that is here already is named, so that nobody is asked whether there is a newer one.
    known = {"file": str(where)} if where is not None else None
    model = create_model(tag.name, pretrained=True, pretrained_cfg_overlay=known).to(options.world.device)
    found = {}
    for name, folder in data.items():
        real = name == "ImageNet" and is_validation_image(_first_image(eval_folder(folder)))
        if name == "ImageNet" and not real:
            notes.append(f"ReaL is not measured: the files in {folder} are not named ILSVRC2012_val_00000001.JPEG.")
        found[name] = evaluate_folder(model, folder, real=real, options=options)
    return found


def _rows(tag: WeightTag, found: Mapping[str, Evaluation]) -> list[TableRow]:
    rows = []
    for metric in dict.fromkeys(score.metric for score in tag.scores):
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


def _reasons(rows: Sequence[TableRow], absent: Sequence[str], data: Mapping[str, Path]) -> list[str]:
    reasons = []
    if absent:
        reasons.append(f"Weights that are not on this machine: {', '.join(absent)} (--download fetches them).")
    needed = {METRICS[row.metric][0] for row in rows if row.measured is None and row.metric in METRICS} - data.keys()
    if needed:
        reasons.append(f"Data that was not given: {', '.join(sorted(needed))} (--data FOLDER, as often as need be).")
    others = {row.metric for row in rows if row.metric not in METRICS}
    if others:
        reasons.append(f"Not measured by this command: {listed(others)}.")
    return reasons


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
