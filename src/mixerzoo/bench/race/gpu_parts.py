"""The parts of the GPU suite that race whole models: ``mixerzoo bench --suite gpu --part b16``, and so on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from mixerzoo.bench.gpu import floors
from mixerzoo.bench.gpu.request import Request
from mixerzoo.bench.race import targets
from mixerzoo.bench.race.models import config_of
from mixerzoo.bench.race.plan import Field, field_of, plan_races
from mixerzoo.bench.race.results import RaceResult
from mixerzoo.bench.race.runner import YARDSTICK, Say
from mixerzoo.bench.race.several import open_report, run_all
from mixerzoo.bench.race.targets import Target
from mixerzoo.bench.race.terms import OURS, Dtype, Race, no_fp8
from mixerzoo.bench.workers.process import Worker, WorkerLost
from mixerzoo.errors import ConfigError

_CEILINGS_LIMIT = 180.0

Rates = Mapping[str, float | None]


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        models: Variants, the most valuable first.
        batch_size: Images of a call.
        dtype: What ours runs in.
        peers: Whom it races against.
        judge: From a race and the rates of the card to targets.
        training: Whether training steps are raced.
        also_in: A second dtype in which ours takes part, as a rival of itself.
        with_floor: Whether the judge needs the rates of the card.
    """

    models: Sequence[str]
    batch_size: int
    dtype: Dtype
    peers: Sequence[str]
    judge: Callable[[RaceResult, Rates], list[Target]]
    training: bool = False
    also_in: Dtype | None = None
    with_floor: bool = False


def _judge_b16(result: RaceResult, rates: Rates) -> list[Target]:
    moonshot = targets.against(result, [("timm-compile", "bf16")], 1.5)
    return [
        targets.share_of_floor(result, _floor(result, rates), 85.0),
        targets.against(result, [("timm-compile", "bf16")], 1.4),
        replace(moonshot, what=f"{moonshot.what}, the moonshot"),
        targets.against(result, [("timm", "bf16")], 2.3),
    ]


def _judge_variant(result: RaceResult, rates: Rates) -> list[Target]:  # noqa: ARG001
    return [targets.against(result, [("timm-compile", "bf16")], 1.2)]


def _judge_latency(result: RaceResult, rates: Rates) -> list[Target]:  # noqa: ARG001
    return [targets.against(result, [("timm-compile-latency", "bf16")], 0.6, time=True)]


def _judge_fp8(result: RaceResult, rates: Rates) -> list[Target]:
    floor = _floor(result, rates, quantised=True)
    return [targets.share_of_floor(result, floor, 85.0), targets.against(result, [(OURS, "bf16")], 1.2)]


def _judge_training(result: RaceResult, rates: Rates) -> list[Target]:  # noqa: ARG001
    return [
        targets.against(result, [("timm-compile", "bf16")], 1.3),
        targets.memory(result, ("timm-compile", "bf16"), 0.7),
    ]


_COMPILE = f"{OURS}-compile"
_OTHERS = ("mixer_s16", "mixer_l16", "mixer_b32", "mixer_s32", "mixer_l32", "mixer_s8", "mixer_h14")

RACE_PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "b16": Part(("mixer_b16",), 256, "bf16", (_COMPILE, "timm", "timm-compile"), _judge_b16, with_floor=True),
        "variants": Part(_OTHERS, 256, "bf16", ("timm-compile",), _judge_variant),
        "latency": Part(("mixer_b16",), 1, "bf16", (_COMPILE, "timm", "timm-compile-latency"), _judge_latency),
        "fp8": Part(("mixer_b16", "mixer_l16"), 256, "fp8", ("torchao",), _judge_fp8, also_in="bf16", with_floor=True),
        "train": Part(("mixer_b16",), 256, "bf16", ("timm-compile",), _judge_training, training=True),
    }
)
"""By name."""


def race_part(request: Request, say: Say) -> bool:
    """Run a part on the CUDA device.

    Args:
        request: Which part, and how long.
        say: Receives each line of progress, the tables, and each target with what was measured.

    Returns:
        Whether ours ran and computed what it should in every race that was run.

    Raises:
        ConfigError: No race matches, or the folder holds results of an earlier run.
    """
    deadline = time.monotonic() + 60 * request.minutes
    part = RACE_PARTS[request.part]
    hindrance = no_fp8("cuda", part.dtype)
    if hindrance:
        say(f"skipped: {hindrance}, and this card has less.")
        return True
    field = _field(part)
    planned = [race for race in _races(part, field) if request.match in race.title]
    if not planned:
        raise ConfigError(f"No race of the part {request.part!r} has {request.match!r} in its title.")
    report = open_report(request.out, f"gpu-{request.part}", planned[0], say)
    rates: Rates = {}
    if part.with_floor:
        rates = _ceilings(say)
        report.note(rates=rates)
    results = run_all(planned, field, report, say, deadline)
    report.finish(say, [target for result in results for target in part.judge(result, rates)])
    return all(result.lanes[0].counts for result in results)


def _field(part: Part) -> Field:
    """Ours, then ours in the other dtype, then the peers."""
    field = field_of(part.dtype, "cuda", part.peers)
    if part.also_in is None:
        return field
    ours, *others = field.entries
    return replace(field, entries=(ours, replace(ours, dtype=part.also_in), *others))


def _races(part: Part, field: Field) -> list[Race]:
    races = [race for model in part.models for race in plan_races(model, [part.batch_size], "cuda", field)]
    return [replace(race, training=part.training) for race in races]


def _ceilings(say: Say) -> Rates:
    """What the card can do: TFLOP/s by numerics, TB/s of copies; empty if measuring failed."""
    worker = Worker(YARDSTICK)
    try:
        answer = worker.ask({"do": "ceilings"}, _CEILINGS_LIMIT, "measuring the card")
    except WorkerLost as error:
        answer = {"failure": str(error)}
    finally:
        worker.close()
    if "failure" in answer:
        say(f"no floors, because the card's rates could not be measured: {answer['failure']}")
        return {}
    rates: Rates = answer["rates"]
    say("rates: " + ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items() if rate is not None))
    return rates


def _floor(result: RaceResult, rates: Rates, quantised: bool = False) -> float | None:
    """Seconds that one call takes at best, by rates of this run."""
    measured = [rate for rate in result.products.get("fp8", []) if rate is not None]
    products = {"fp8": statistics.median(measured) / 1e12} if measured else {}
    phases = floors.model_phases(result.race.batch_size, config_of(result.race.model), quantised)
    microseconds = floors.floor(phases, {**rates, **products})
    return None if microseconds is None else microseconds / 1e6
