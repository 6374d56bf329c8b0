"""How fast: each contender on each problem against what the card allows, and which tiles suit each kernel.

Cases run one at a time in one worker; its first case measures the ceilings, which the parent hands to all later ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mixerzoo.bench.gpu import ceilings
from mixerzoo.bench.gpu.cases import Case, Outcome
from mixerzoo.bench.gpu.checks import relative_error
from mixerzoo.bench.gpu.contenders import (
    CONTENDERS,
    MAX_AUTOTUNE,
    VARIANTS,
    bfloat16_setting,
    contender,
    prepare_race,
    widths,
)
from mixerzoo.bench.gpu.floors import Phase, amounts, floor, kernel_phases, phases_of
from mixerzoo.bench.gpu.tiles import BACKWARD_KERNELS, FORWARD_KERNELS, candidates
from mixerzoo.bench.gpu.timing import Timing, copies_for, time_events, time_graph
from mixerzoo.bench.gpu.tolerances import MAX_DIFFERENCE
from mixerzoo.ops.problem import OPERATIONS

_BATCH = 256
_MOST_TILES = 30  # a kernel; a third of that for variants other than the first


_CEILINGS: Case = {"label": "ceilings", "kind": "ceilings", "limit": 180}
_KERNELS = (*FORWARD_KERNELS, *BACKWARD_KERNELS)


def cases(rehearsal: bool) -> list[Case]:
    """Contenders on every problem, the most valuable first; a toy list for a rehearsal."""
    if rehearsal:
        training = [case for case in _contenders("toy", "training", 3) if case["op"] == "block"]
        return [_CEILINGS, *_contenders("toy", "inference", 3), *training]
    main, *others = _variants()
    autotuned = [
        _contender_case(main, op, mode, MAX_AUTOTUNE, _BATCH) | {"limit": 300}
        for mode in ("inference", "training")
        for op in CONTENDERS
    ]
    return [
        _CEILINGS,
        *(case for mode in ("inference", "training") for case in _contenders(main, mode, _BATCH)),
        *(case for name in others for case in _contenders(name, "inference", _BATCH)),
        *(case for name in others for case in _contenders(name, "training", _BATCH)),
        *autotuned,
    ]


def tile_cases(rehearsal: bool) -> list[Case]:
    """Tiles of every kernel, the first variant's first; a toy list for a rehearsal."""
    if rehearsal:
        return [_CEILINGS, *(case for kernel in _KERNELS for case in _tiles("toy", kernel, 3, 1))]
    main, *others = _variants()
    return [
        _CEILINGS,
        *(case for kernel in _KERNELS for case in _tiles(main, kernel, _BATCH, _MOST_TILES)),
        *(case for name in others for kernel in _KERNELS for case in _tiles(name, kernel, _BATCH, _MOST_TILES // 3)),
    ]


def _variants() -> list[str]:
    return [name for name in VARIANTS if name != "toy"]


def _contenders(variant: str, mode: str, images: int) -> list[Case]:
    """All contenders, one operation after the other; cuBLASLt's epilogue has no CPU to be rehearsed on."""
    return [
        _contender_case(variant, op, mode, name, images)
        for op in (*OPERATIONS, "block")
        for name in CONTENDERS[op]
        if not (variant == "toy" and "cublaslt" in name)
    ]


def _contender_case(variant: str, op: str, mode: str, name: str, images: int) -> Case:
    return {
        "label": f"{variant} {op} {mode}: {name}",
        "kind": "contender",
        "variant": variant,
        "op": op,
        "mode": mode,
        "contender": name,
        "images": images,
    }


def _tiles(variant: str, kernel: str, images: int, most: int) -> Iterator[Case]:
    """One case a tile; one that does not fit the card fails and takes nothing with it."""
    for tile in candidates(kernel, VARIANTS[variant], most):
        yield {
            "label": f"{variant} {kernel}: tile {'x'.join(map(str, tile))}",
            "kind": "tile",
            "variant": variant,
            "kernel": kernel,
            "tile": tile,
            "images": images,
            "may_fail": True,
            "limit": 60,
        }


def run_case(case: Case) -> Outcome:
    """Run one case of :func:`cases` or :func:`tile_cases`."""
    if case["kind"] == "ceilings":
        rates = ceilings.measure()
        return Outcome(measured={"rates": rates}, carry={"rates": rates})
    torch.set_float32_matmul_precision("highest")
    return _race(case) if case["kind"] == "contender" else _try_tile(case)


def _race(case: Case) -> Outcome:
    config, images, training = VARIANTS[case["variant"]], case["images"], case["mode"] == "training"
    chosen = contender(case["op"], case["contender"])
    race = prepare_race(case["op"], config, images, chosen, training)
    difference = relative_error(race.result, race.expected)
    timing = time_events(race.steps) if training else time_graph(race.steps)
    ops = OPERATIONS if case["op"] == "block" else (case["op"],)
    phases = [phase for op in ops for phase in phases_of(op, images, widths(op, config), training)]
    return _outcome(timing, phases, case, {"result": difference})


def _try_tile(case: Case) -> Outcome:
    from mixerzoo.bench.gpu.launches import Anywhere, prepare

    config, images, kernel = VARIANTS[case["variant"]], case["images"], case["kernel"]
    op = "token_mlp" if kernel.startswith("token") else "channel_mlp"
    setting = bfloat16_setting(op, config, images)
    shape = widths(op, config)
    rounds = min(copies_for(images * config.num_tokens * config.embed_dim * 2), 4)
    prepared = [prepare(kernel, setting, Anywhere(), case["tile"], seed) for seed in range(rounds)]
    usual = prepare(kernel, setting, Anywhere())
    for one in (usual, prepared[0]):
        one.run()
    differences = _differences(prepared[0].totals(), usual.totals())
    del usual
    timing = time_graph([one.run for one in prepared])
    return _outcome(timing, kernel_phases(kernel, images, shape), case, differences)


def _differences(actual: dict[str, Tensor], usual: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative_error(tensor, usual[name]) for name, tensor in actual.items()}


def _outcome(timing: Timing, phases: list[Phase], case: Case, differences: dict[str, float]) -> Outcome:
    """Figures of one contender or tile, and whether its results are those of the others."""
    best = floor(phases, case.get("rates", {}))
    share = None if best is None or timing.median is None else best / timing.median
    measured: dict[str, Any] = {
        "median us": timing.median,
        "spread us": timing.spread,
        "repeats": timing.repeats,
        "method": timing.method,
        "floor us": best,
        "share of floor": share,
        "differences": differences,
    }
    wrong = {name: error for name, error in differences.items() if not error <= MAX_DIFFERENCE}
    failures = [f"the result is wrong: {wrong} away from what it should be"] if wrong else []
    return Outcome(failures, measured | amounts(phases))
