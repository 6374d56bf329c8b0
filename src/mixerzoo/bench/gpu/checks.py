"""What is asked of an implementation. Each check takes it as a function, so that wrong ones can be tried as well."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixerzoo.bench.gpu.guards import CANARIES, Guards, same_bits
from mixerzoo.bench.gpu.inputs import Compute
from mixerzoo.bench.gpu.tolerances import Tolerance
from mixerzoo.ops.problem import Branch


@dataclass(frozen=True)
class Check:
    """One question with its answer.

    Attributes:
        name: What was asked.
        passed: Whether the answer is right.
        measured: Figures behind the answer.
    """

    name: str
    passed: bool
    measured: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The name with the figures."""
        figures = ", ".join(f"{key} {value}" for key, value in self.measured.items())
        return f"{self.name}: {figures or ('right' if self.passed else 'wrong')}"


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """``||actual - exact|| / ||exact||``; ``||actual||`` where nothing is expected; infinite across shapes."""
    if actual.shape != exact.shape:
        return float("inf")
    exact = exact.double()
    difference, size = (actual.double() - exact).norm().item(), exact.norm().item()
    return difference / size if size else difference


def check_errors(
    actual: dict[str, Tensor],
    pytorch: dict[str, Tensor],
    exact: dict[str, Tensor],
    tolerance: Tolerance,
    prefix: str = "error",
) -> list[Check]:
    """Every result against float64, beside plain PyTorch's in the same dtype; dtypes must be PyTorch's.

    Args:
        actual: Results by name.
        pytorch: Of the definition in the same dtype.
        exact: Of the definition in float64.
        tolerance: How much worse than PyTorch is fine.
        prefix: Begins the checks' names.
    """
    checks = []
    for name, result in actual.items():
        theirs = relative_error(pytorch[name], exact[name])
        ours, limit = relative_error(result, exact[name]), tolerance.limit(theirs)
        right = ours <= limit and result.dtype == pytorch[name].dtype
        figures = {"error": ours, "limit": limit, "pytorch": theirs, "dtype": str(result.dtype).removeprefix("torch.")}
        checks.append(Check(f"{prefix} {name}", right, figures))
    return checks


def _differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in a.items() if not same_bits(tensor, b[name])]


def check_repeat(compute: Compute, branch: Branch, g: Tensor, first: dict[str, Tensor]) -> Check:
    """Once more gives the same bits."""
    differing = _differing(first, compute(branch, g))
    return Check("the same bits when repeated", not differing, {"differing": differing})


def check_guards(compute: Compute, branch: Branch, g: Tensor, first: dict[str, Tensor]) -> Check:
    """Inputs between guard bands: nothing is written there, and what stands there changes no result."""
    broken: list[str] = []
    differing: list[str] = []
    for canary in CANARIES:
        guards = Guards(canary)
        placed = [
            None if tensor is None else guards.place(name, tensor)
            for name, tensor in zip(Branch._fields, branch, strict=True)
        ]
        results = compute(Branch._make(placed), guards.place("g", g))
        broken += guards.broken()
        differing += _differing(first, results)
    return Check(
        "inputs between guard bands",
        not broken and not differing,
        {"written beyond": sorted(set(broken)), "differing": sorted(set(differing))},
    )


def check_strides(compute: Compute, branch: Branch, g: Tensor, first: dict[str, Tensor]) -> Check:
    """Every tensor stored transposed, and with gaps between its elements, gives the same bits."""
    other = Branch._make(None if tensor is None else _with_gaps(tensor) for tensor in branch)
    differing = _differing(first, compute(other, _with_gaps(g)))
    return Check("the same bits from strided tensors", not differing, {"differing": differing})


def _with_gaps(tensor: Tensor) -> Tensor:
    """The same values as every second element of a buffer, the last two axes swapped in it; NaN between them."""
    turned = tensor.mT if tensor.ndim > 1 else tensor
    buffer = torch.full((*turned.shape, 2), float("nan"), dtype=tensor.dtype, device=tensor.device)
    buffer[..., 0] = turned
    return buffer[..., 0].mT if tensor.ndim > 1 else buffer[..., 0]


def check_nonfinite(compute: Compute, pytorch: Compute, branch: Branch, g: Tensor) -> Check:
    """A NaN in the first image and an infinity in the last one show exactly where PyTorch shows them."""
    x = branch.x.clone()
    x[0, x.shape[1] // 2, x.shape[2] // 3] = float("nan")
    x[-1, x.shape[1] // 3, x.shape[2] // 2] = float("inf")
    poisoned = branch._replace(x=x)
    actual, expected = compute(poisoned, g), pytorch(poisoned, g)
    wrong = {}
    for name in ("out", "inference", "x"):
        ours, theirs = actual[name], expected[name]
        strays = (ours.isnan() != theirs.isnan()) | (ours.isinf() != theirs.isinf())
        if strays.any():
            wrong[name] = int(strays.sum())
    count = int(expected["out"].isnan().sum())
    return Check("NaN and infinity where PyTorch has them", not wrong, {"NaN expected": count, "misplaced": wrong})


def check_compiled(eager: dict[str, Tensor], compiled: dict[str, Tensor]) -> Check:
    """An operation that the compiler takes as one gives the same bits compiled."""
    differing = _differing(eager, compiled)
    return Check("the same bits under torch.compile", not differing, {"differing": differing})


def first_images(branch: Branch, g: Tensor, images: int) -> tuple[Branch, Tensor]:
    """The same problem with fewer images."""
    keep = None if branch.keep is None else branch.keep[:images]
    return branch._replace(x=branch.x[:images], keep=keep), g[:images]


def check_results_finite(results: dict[str, Tensor]) -> Check:
    """Finite inputs give finite results."""
    wrong = [name for name, tensor in results.items() if not torch.isfinite(tensor).all()]
    return Check("finite", not wrong, {"not finite": wrong})
