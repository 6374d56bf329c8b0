"""``mixerzoo evaluate``."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch import nn

from mixerzoo import engine, factory
from mixerzoo.cli.device import usable_device
from mixerzoo.data.naming import kind_of
from mixerzoo.distributed import is_first_process, job
from mixerzoo.errors import ConfigError
from mixerzoo.inference.confusion_picture import check_drawable, draw_confusion
from mixerzoo.inference.eval_data import eval_splits
from mixerzoo.inference.evaluate import Evaluation, evaluate_data, evaluate_folder
from mixerzoo.inference.evaluation_report import (
    class_table,
    confusion_matrix,
    multi_label_table,
    per_class,
    write_class_csv,
    write_multi_label_csv,
)
from mixerzoo.inference.few_shot import FewShot, evaluate_few_shot
from mixerzoo.inference.multi_label import MultiLabel, evaluate_multi_label
from mixerzoo.inference.paper_table import paper_table
from mixerzoo.inference.scoring import NOT_FINITE, EvalOptions, agreed


@dataclasses.dataclass(frozen=True)
class _Request:
    """The options of the command that say what to evaluate and to show."""

    data: tuple[str, ...]
    model: str | None
    split: str | None
    image_column: str | None
    label_column: str | None
    real: bool
    classes: str | None
    few_shot: tuple[int, ...]
    l2: float
    seeds: int
    multi_label: bool
    per_class: bool
    confusion: Path | None
    csv: Path | None
    json: bool
    optimize: bool
    quantize: Literal["int8", "fp8"] | None
    table: str | None
    download: bool


def evaluate_command(
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder with test/<class>/*.jpg (or val), or with the class folders themselves; tar shards, such as a "
            "folder of them or x-{0..3}.tar; hf:owner/name of the Hugging Face Hub, or hf: and a local folder."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A name that create_model knows, for instance local-dir:runs/1.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Name of the split.  [default: test, val or validation]")] = None,
    image_column: Annotated[str | None, typer.Option(help="Of hf: data with several columns of images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of hf: data whose class indices are plain numbers.")] = None,
    real: Annotated[bool, typer.Option("--real", help="Score ImageNet's validation set by ReaL labels too.")] = False,
    classes: Annotated[
        Literal["all", "data"] | None,
        typer.Option(
            help="Compare the scores of all the model's classes, or of the data's alone.  "
            "[default: data for ImageNet-R and -A, all elsewhere]"
        ),
    ] = None,
    few_shot: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Accuracy of a linear classifier on features of this many training images a class."),
    ] = None,
    l2: Annotated[float, typer.Option(help="Its L2 penalty.")] = 1024.0,
    seeds: Annotated[int, typer.Option(min=1, help="Choices of training images to average over.")] = 3,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Average precision; labels.csv or labels.json names the classes.")
    ] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show every class.")] = False,
    confusion: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this PNG file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the results of every class into this file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
    table: Annotated[
        str | None, typer.Option(help="'paper': published scores of all weights beside what is measured here.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch weights that --table needs.")] = False,
    device: Annotated[str, typer.Option(help="Where to run, for instance cpu or cuda.")] = "cpu",
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 autocast.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model together.")] = 64,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Run the fastest form for this machine, in bfloat16; says which it is.")
    ] = False,
    quantize: Annotated[
        Literal["int8", "fp8"] | None, typer.Option(help="Quantise matrix products as well; implies --optimize.")
    ] = None,
) -> None:
    """Measure how good a model is on labelled images; with torchrun, on several GPUs or machines."""
    request = _Request(
        tuple(data or ()), model, split, image_column, label_column, real, classes, tuple(few_shot or ()), l2, seeds,
        multi_label, per_class, confusion, csv, json_output, optimize, quantize, table, download,
    )  # fmt: skip
    _check(request, amp)
    target = usable_device(device)
    with job(str(target)) as world:
        if not world.is_first:
            warnings.showwarning = lambda *_: None
        options = EvalOptions(world, amp, batch_size, workers, progress=not json_output)
        if table is not None:
            found = paper_table(request.data, model=model, download=download, options=options)
            if world.is_first:
                rows = [dataclasses.asdict(row) for row in found.rows]
                _say(request, str(found), {"rows": rows, "missing": found.missing}, found.missing)
            return
        _evaluate(request, _load(request, options), options)


def _check(request: _Request, amp: bool) -> None:
    """Refuse what does not go together."""
    fast = request.optimize or request.quantize is not None
    kinds = {
        "--table": request.table is not None,
        "--few-shot": bool(request.few_shot),
        "--multi-label": request.multi_label,
    }
    details = {
        "--real": request.real,
        "--classes": request.classes is not None,
        "--per-class": request.per_class,
        "--confusion": request.confusion is not None,
        "--csv": request.csv is not None,
    }
    chosen = [name for name, given in kinds.items() if given]
    allowed = {"--multi-label": {"--per-class", "--csv"}}.get(chosen[0] if chosen else "", set())
    misplaced = [name for name, given in details.items() if given and chosen and name not in allowed]
    if request.table not in (None, "paper"):
        raise ConfigError(f"--table {request.table}: the only table is 'paper'.")
    if len(chosen) > 1 or misplaced:
        raise ConfigError(f"{chosen[0]} does not go together with {(chosen[1:] + misplaced)[0]}: run them one by one.")
    if request.table is not None and (fast or request.split is not None):
        raise ConfigError(
            "--table measures the models as released, on their datasets: leave --optimize and --split out."
        )
    if request.download and request.table is None:
        raise ConfigError("--download is for --table; weights of --model are fetched as they are needed.")
    if fast and amp:
        raise ConfigError("--amp is for a model as it is; an optimized one computes in bfloat16 anyway.")
    if request.table is None and (len(request.data) != 1 or request.model is None):
        raise ConfigError("Say what to evaluate: --model NAME and one --data FOLDER (several with --table paper only).")
    _check_data(request)
    if request.confusion is not None:
        check_drawable()
    if is_first_process():  # which writes
        _check_target("--confusion", request.confusion, ".png")
        _check_target("--csv", request.csv, ".csv")


def _check_data(request: _Request) -> None:
    """Only plain evaluation takes more than image folders."""
    asked = {
        "--table": request.table is not None,
        "--few-shot": bool(request.few_shot),
        "--multi-label": request.multi_label,
        "--real": request.real,
    }
    of_folders = next((name for name, given in asked.items() if given), None)
    for where in request.data if of_folders else ():
        if kind_of(where, eval_splits(request.split)) != "folder":
            raise ConfigError(f"{of_folders} takes image folders only, and {where} is none.")
    if of_folders and (request.image_column or request.label_column):
        raise ConfigError(f"{of_folders} takes image folders only, which have no columns.")


def _check_target(option: str, path: Path | None, suffix: str) -> None:
    """Find out before the work whether a file can be written after it."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: name a file in it, ending in {suffix}.")
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} {path} must end in {suffix}, which is what it will be.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {folder} to write it into.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written ({error.strerror or error}).") from None


def _load(request: _Request, options: EvalOptions) -> nn.Module:
    """The model on every process; the first one fetches what has to be fetched."""
    world, name = options.world, str(request.model)
    model = agreed(world, lambda: factory.create_model(name, pretrained=True).to(world.device), first_alone=True)
    if not request.optimize and request.quantize is None:
        return model
    fast = engine.optimize(model, quantize=request.quantize, max_batch_size=options.batch_size)
    if world.is_first:
        typer.echo(str(fast.report()).splitlines()[0], err=True)
    return fast


def _evaluate(request: _Request, model: nn.Module, options: EvalOptions) -> None:
    data, world = request.data[0], options.world
    if request.few_shot:
        shots = evaluate_few_shot(
            model, data, shots=request.few_shot, l2=request.l2, seeds=range(request.seeds), split=request.split,
            options=options,
        )  # fmt: skip
        if world.is_first:
            _show_few_shot(request, shots)
    elif request.multi_label:
        precision = evaluate_multi_label(model, data, split=request.split, options=options)
        if world.is_first:
            _show_multi_label(request, precision)
    else:
        found = _accuracy(request, model, options)
        if world.is_first:
            _show(request, found)


def _accuracy(request: _Request, model: nn.Module, options: EvalOptions) -> Evaluation:
    data, split = request.data[0], request.split
    restrict = None if request.classes is None else request.classes == "data"
    if request.real:
        return evaluate_folder(model, data, split=split, real=True, restrict=restrict, options=options)
    return evaluate_data(
        model, data, split=split, image_column=request.image_column, label_column=request.label_column,
        restrict=restrict, options=options,
    )  # fmt: skip


def _show(request: _Request, found: Evaluation) -> None:
    accuracy, compared = found.accuracy, len(found.mask.compared())
    lines = [accuracy.in_words(compared)]
    if found.real is not None:
        lines.append(f"ReaL top-1 {100 * found.real.top1:.2f} % of {found.real.num_images} images with ReaL labels")
    notes = []
    if compared != len(found.classes) or found.mask.how != "matched by name":
        of = f"of the {len(found.mask.titles)} outputs, {compared} compared"
        notes.append(f"{len(found.classes)} classes {of}; {found.mask.how}")
    if accuracy.num_invalid:
        notes.append(f"the scores of {accuracy.num_invalid} images, which count as wrong, {NOT_FINITE}")
    results = per_class(found)
    content: dict[str, Any] = {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "num_images": accuracy.num_images,
        "num_invalid": accuracy.num_invalid,
        "compared_outputs": compared,
        "real": None if found.real is None else dataclasses.asdict(found.real),
    }
    if request.per_class:
        lines += ["", class_table(results)]
        content["classes"] = [dataclasses.asdict(result) for result in results]
    _say(request, "\n".join(lines), content, notes)
    if request.csv is not None:
        write_class_csv(results, request.csv)
        _note(f"classes in {request.csv}")
    if request.confusion is not None:
        names = [found.mask.titles[output] for output in found.mask.outputs]
        title = f"{request.model}: top-1 {100 * accuracy.top1:.2f} % of {accuracy.num_images} images"
        draw_confusion(confusion_matrix(found), names, title, request.confusion)
        _note(f"confusion matrix in {request.confusion}")


def _show_few_shot(request: _Request, found: FewShot) -> None:
    lines = []
    for shots, values in found.accuracy.items():
        each = f" ({', '.join(f'{100 * value:.2f}' for value in values)})" if len(values) > 1 else ""
        lines.append(f"{shots}-shot top-1 {100 * found.mean(shots):.2f} %{each} of {found.num_images} images")
    content = {
        "few_shot": {str(shots): list(values) for shots, values in found.accuracy.items()},
        "num_images": found.num_images,
        "l2": found.l2,
    }
    _say(request, "\n".join(lines), content, [])


def _show_multi_label(request: _Request, found: MultiLabel) -> None:
    counted = sum(value is not None for value in found.average_precision)
    lines = [
        f"mean average precision {100 * found.macro:.2f} % (macro, {counted} classes), "
        f"{100 * found.micro:.2f} % (micro) of {found.num_images} images"
    ]
    notes = []
    if counted < len(found.classes):
        notes.append(f"{len(found.classes) - counted} classes have no image and are left out of the macro average")
    if request.per_class:
        lines += ["", multi_label_table(found)]
    _say(request, "\n".join(lines), dataclasses.asdict(found), notes)
    if request.csv is not None:
        write_multi_label_csv(found, request.csv)
        _note(f"classes in {request.csv}")


def _say(request: _Request, text: str, content: dict[str, Any], notes: list[str] | tuple[str, ...]) -> None:
    """The result on standard output, remarks on standard error."""
    if request.json:
        about = {"model": request.model, "data": list(request.data), "split": request.split}
        typer.echo(json.dumps(about | content, ensure_ascii=False))
    else:
        typer.echo(text)
    for note in notes:
        _note(note)


def _note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)
