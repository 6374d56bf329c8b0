"""Agreement of the engine's reduced precisions with float32, on real labelled images and a real checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixerzoo.data.folder import EVAL_SPLITS, in_one_line, open_folder
from mixerzoo.engine import optimize
from mixerzoo.engine.folding import fold
from mixerzoo.engine.fp8_reference import emulate
from mixerzoo.engine.program import Request
from mixerzoo.engine.programs import PROGRAMS
from mixerzoo.errors import EngineError
from mixerzoo.factory import create_model, create_transform
from mixerzoo.model import Mixer

Form = Literal["bf16", "int8", "fp8"]
WANTED: dict[Form, float] = {"bf16": 0.99, "int8": 0.98, "fp8": 0.98}
"""Smallest share of images whose first class must be float32's."""

LARGEST_LOSS = 0.005
"""Largest loss of top-1 accuracy, as a fraction."""

_BATCH = 250


@dataclass(frozen=True)
class Agreement:
    """One precision beside float32, as fractions of ``num_images``.

    Attributes:
        form: The precision.
        program: What computed it, or why nothing did.
        top1: Images classified correctly.
        exact_top1: Images that float32 classifies correctly.
        same: Images whose first class is float32's.
        num_images: Images that were counted; 0 where nothing could compute the form.
    """

    form: Form
    program: str
    top1: float
    exact_top1: float
    same: float
    num_images: int

    @property
    def met(self) -> bool:
        """Whether it agrees as it should and loses no more than it may."""
        return bool(self.num_images) and self.same >= WANTED[self.form] and self.exact_top1 - self.top1 <= LARGEST_LOSS


def measure_agreement(data: str | Path, forms: Sequence[Form] = ("bf16", "int8", "fp8")) -> list[Agreement]:
    """Classify the test split of a folder with the built-in checkpoint in float32 and in each form.

    FP8 is emulated where no card computes it.

    Args:
        data: Folder with ``test/<class>/*.jpg`` (or ``val``) of CIFAR-10's classes.
        forms: What to measure.

    Raises:
        DataError: The split is missing, empty, or has other classes.
    """
    model = create_model("mixer_ti4_32.cifar10", pretrained=True).eval()
    assert isinstance(model, Mixer)
    names = model.pretrained_cfg["label_names"]
    dataset = open_folder(data, EVAL_SPLITS, create_transform(model), list(names))
    batches = torch.utils.data.DataLoader(dataset, batch_size=_BATCH)
    runs = {form: _runner(model, form) for form in forms}
    with torch.inference_mode():
        exact, labels, found = _classify(model, {form: run for form, (_, run) in runs.items() if run}, batches)
    exact_top1 = _share(exact == labels)
    results = []
    for form, (program, _) in runs.items():
        if form in found:
            shares = _share(found[form] == labels), exact_top1, _share(found[form] == exact)
            results.append(Agreement(form, program, *shares, len(labels)))
        else:
            results.append(Agreement(form, program, 0.0, exact_top1, 0.0, 0))
    return results


def _runner(model: Mixer, form: Form) -> tuple[str, Callable[[Tensor], Tensor] | None]:
    """What computes a form and its name; where nothing does, the reason."""
    quantize = None if form == "bf16" else form
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        fast = optimize(model, quantize=quantize, device=device, max_batch_size=_BATCH)
    except EngineError as error:
        if form != "fp8":
            return str(error), None
        if importlib.util.find_spec("triton") is None:
            return "its weights are packed with Triton, which is not installed", None
        return "emulated", _emulated_fp8(model)
    return fast.report().program, fast


def _emulated_fp8(model: Mixer) -> Callable[[Tensor], Tensor]:
    request = Request(model.config, torch.device("cpu"), torch.bfloat16, "fp8", True, None)
    return emulate(PROGRAMS["fp8"].pack(fold(model), request), request).logits


def _classify(
    model: Mixer, runs: dict[Form, Callable[[Tensor], Tensor]], batches: Iterable[Any]
) -> tuple[Tensor, Tensor, dict[Form, Tensor]]:
    """First classes by the model, labels, and first classes by each form."""
    exact: list[Tensor] = []
    labels: list[Tensor] = []
    found: dict[Form, list[Tensor]] = {form: [] for form in runs}
    pairs: Iterator[tuple[Tensor, Tensor]] = in_one_line(batches)
    for images, truth in pairs:
        labels.append(truth)
        exact.append(model(images).argmax(1))
        for form, run in runs.items():
            found[form].append(run(images).argmax(1).cpu())
    return torch.cat(exact), torch.cat(labels), {form: torch.cat(classes) for form, classes in found.items()}


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def report(data: str | Path) -> str:
    """Measure every form and lay the figures out as a table."""
    results = measure_agreement(data)
    first = results[0]
    lines = [
        f"mixer_ti4_32.cifar10 on {first.num_images} images: float32 top-1 {100 * first.exact_top1:.2f} %",
        f"{'form':6}{'program':12}{'top-1 %':>9}{'same class %':>14}{'wanted':>8}",
    ]
    for row in results:
        if not row.num_images:
            lines.append(f"{row.form:6}not measured: {row.program}")
            continue
        verdict = "met" if row.met else "NOT met"
        figures = f"{100 * row.top1:9.2f}{100 * row.same:14.2f}{100 * WANTED[row.form]:8.0f}"
        lines.append(f"{row.form:6}{row.program:12}{figures}  {verdict}")
    return "\n".join(lines)
