"""Whether the operations are right on this card: how one case of :mod:`mixerzoo.bench.gpu.plan` is run."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mixerzoo.bench.gpu.cases import Case, Outcome
from mixerzoo.bench.gpu.checks import (
    Check,
    check_compiled,
    check_errors,
    check_guards,
    check_nonfinite,
    check_repeat,
    check_results_finite,
    check_strides,
    first_images,
    relative_error,
)
from mixerzoo.bench.gpu.engine import engine_checks
from mixerzoo.bench.gpu.guards import CANARIES, Guards, same_bits
from mixerzoo.bench.gpu.inputs import (
    Call,
    Compute,
    Setting,
    by_backend,
    by_reference,
    differentiated,
    in_float64,
    precision,
    random_branch,
    setting_of,
)
from mixerzoo.bench.gpu.plan import cases
from mixerzoo.bench.gpu.tolerances import MAX_DIFFERENCE, TOLERANCES
from mixerzoo.ops.backends import BACKENDS
from mixerzoo.ops.backends.triton import interpreted
from mixerzoo.ops.problem import Branch

__all__ = ["branch_checks", "cases", "far_checks", "kernel_checks", "run_case"]


def run_case(case: Case) -> Outcome:
    """Run one case of :func:`cases`."""
    if case["kind"] == "engine":
        return _outcome(engine_checks(case))
    setting = setting_of(case)
    with precision(setting.numerics):
        if case["kind"] == "kernel":
            checks = kernel_checks(case["kernel"], setting)
        elif case["kind"] == "far":
            checks = far_checks(case["backend"], setting)
        else:
            checks = branch_checks(case, setting)
    return _outcome(checks)


def _outcome(checks: list[Check]) -> Outcome:
    failures = [str(check) for check in checks if not check.passed]
    figures: dict[str, Any] = {check.name: {"passed": check.passed} | check.measured for check in checks}
    return Outcome(failures, {"checks": figures})


def branch_checks(case: Case, setting: Setting, call: Call | None = None) -> list[Check]:
    """All that is asked of an operation.

    Args:
        case: ``backend``, and whether also batches of none and one (``batches``) and ``torch.compile`` (``compile``).
        setting: The problem.
        call: What to ask; the backend's operation unless given.
    """
    call = call or by_backend(setting.op, setting.act, case["backend"])
    ours, pytorch = differentiated(call), differentiated(by_reference(setting))
    branch, g = random_branch(setting)
    first = ours(branch, g)
    checks = [check_results_finite(first), *_errors(first, pytorch, setting, branch, g)]
    checks += [
        check_repeat(ours, branch, g, first),
        check_guards(ours, branch, g, first),
        check_strides(ours, branch, g, first),
        check_nonfinite(ours, pytorch, branch, g),
    ]
    if case.get("batches"):
        for images in (0, 1):
            fewer, less = first_images(branch, g, images)
            checks += _errors(ours(fewer, less), pytorch, setting, fewer, less, f"error with {images} images")
    if case.get("compile"):
        compiled = differentiated(_compiled(call))(branch, g)
        checks += _errors(compiled, pytorch, setting, branch, g, "error compiled")
        if not BACKENDS[case["backend"]].traceable:
            checks.append(check_compiled(first, compiled))
    return checks


def _errors(
    results: dict[str, Tensor], pytorch: Compute, setting: Setting, branch: Branch, g: Tensor, prefix: str = "error"
) -> list[Check]:
    exact = in_float64(setting, branch, g)
    return check_errors(results, pytorch(branch, g), exact, TOLERANCES[setting.numerics], prefix)


def _compiled(call: Call) -> Call:
    """The call as one graph; a rehearsal traces it and leaves out the C++ compiler."""
    compiled: Call = torch.compile(
        call, fullgraph=True, dynamic=False, backend="aot_eager" if interpreted() else "inductor"
    )
    return compiled


def kernel_checks(kernel: str, setting: Setting) -> list[Check]:
    """A kernel with all its tensors between guard bands, results first full of the canary."""
    from mixerzoo.bench.gpu.launches import prepare

    broken: list[str] = []
    runs: list[dict[str, Tensor]] = []
    for canary in CANARIES:
        guards = Guards(canary)
        prepared = prepare(kernel, setting, guards)
        prepared.run()
        broken += guards.broken()
        runs.append(prepared.results)
    differing = [name for name, tensor in runs[0].items() if not same_bits(tensor, runs[1][name])]
    figures = {"written beyond": sorted(set(broken)), "differing or not written": differing}
    return [Check("tensors between guard bands", not broken and not differing, figures)]


def far_checks(backend: str, setting: Setting) -> list[Check]:
    """The first and the last images of a huge batch come out as they do on their own, and so do their gradients."""
    parameters = random_branch(dataclasses.replace(setting, images=1))[0]
    x, g = (
        torch.empty(setting.images, setting.tokens, setting.channels, dtype=setting.stream, device=setting.device)
        for _ in range(2)
    )
    x.normal_()
    g.normal_()
    call = by_backend(setting.op, setting.act, backend)

    def both(part: slice) -> tuple[Tensor, Tensor]:
        leaf = x[part].detach().requires_grad_()
        out = call(parameters._replace(x=leaf))
        return out.detach(), torch.autograd.grad(out, leaf, g[part])[0]

    whole = both(slice(None))
    checks = []
    for name, part in (("first", slice(0, 1)), ("last", slice(-1, None))):
        errors = [relative_error(ours[part], alone) for ours, alone in zip(whole, both(part), strict=True)]
        right = max(errors) <= MAX_DIFFERENCE
        checks.append(Check(f"the {name} image of many", right, {"out": errors[0], "x": errors[1]}))
    return checks
