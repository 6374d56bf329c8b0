"""What a race came to: raw rounds, and the figures that follow from them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from mixerzoo.bench.race.models import config_of
from mixerzoo.bench.race.terms import BOUNDS, Dtype, Entry, Race

TRAINING_PRODUCTS = 3
"""Matrix products of a training step over those of a forward pass: outputs, gradients of inputs and of weights."""


@dataclass
class Lane:
    """One contender's way through the race.

    Attributes:
        entry: Who.
        seconds: Of one call in each round; None where a round did not finish.
        failure: Why it did not get ready, or stopped.
        build_seconds: From nothing to the first result.
        error: Relative L2 error of its logits against timm's eager float32.
        says: What ran, in its own words.
        memory: Bytes that the card's memory held at most.
    """

    entry: Entry
    seconds: list[float | None] = field(default_factory=list)
    failure: str | None = None
    build_seconds: float | None = None
    error: float | None = None
    says: str = ""
    memory: int | None = None

    @property
    def wrong(self) -> str | None:
        """Why its results are not those of the others; None if they are."""
        bound = BOUNDS[self.entry.dtype]
        if self.error is None or self.error <= bound:
            return None
        return f"computes something else: its logits are off by {self.error:.2g}, {self.entry.dtype} allows {bound:g}"

    @property
    def counts(self) -> bool:
        """Whether it ran to the end and computed what it should."""
        return self.median is not None and self.failure is None and self.wrong is None

    @property
    def median(self) -> float | None:
        """Seconds of one call."""
        return _median(self.seconds)


@dataclass
class RaceResult:
    """A race with what became of it.

    Attributes:
        race: What was raced.
        lanes: One for each entry, in its order.
        products: Rate of a plain matrix product in each round, in operations a second, by dtype.
        skipped: Why others do not take part.
        remarks: What went differently than planned.
        cut_short: Whether time was up before everybody was ready.
    """

    race: Race
    lanes: list[Lane]
    products: dict[Dtype, list[float | None]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    cut_short: bool = False

    def lane(self, contender: str, dtype: Dtype) -> Lane | None:
        """The lane of a contender, where it ran and computed what it should."""
        found = (lane for lane in self.lanes if (lane.entry.contender, lane.entry.dtype) == (contender, dtype))
        return next((lane for lane in found if lane.counts), None)

    def ratio(self, lane: Lane) -> float | None:
        """How many times as fast as a lane ours is, the first of all: the median over the rounds."""
        ours = self.lanes[0]
        if not (ours.counts and lane.counts):
            return None
        return _median([_divide(theirs, own) for theirs, own in zip(lane.seconds, ours.seconds, strict=False)])

    def images_per_second(self, lane: Lane) -> float | None:
        """Throughput by the median call."""
        return _divide(self.race.batch_size, lane.median)

    def share_of_products(self, lane: Lane) -> float | None:
        """The rate of a lane's matrix products over that of a plain product in its dtype, round by round."""
        rates = self.products.get(lane.entry.dtype, [])
        operations = self.operations
        return _median(
            [_divide(_divide(operations, call), rate) for call, rate in zip(lane.seconds, rates, strict=False)]
        )

    @property
    def operations(self) -> float:
        """Floating-point operations of the matrix products of one call: two for each multiply-add."""
        passes = TRAINING_PRODUCTS if self.race.training else 1
        return 2.0 * config_of(self.race.model).multiply_adds * self.race.batch_size * passes

    def as_plain(self) -> dict[str, Any]:
        """Everything, plain enough for JSON: raw rounds and derived figures."""
        lanes = [asdict(lane) | {"wrong": lane.wrong} | self.figures(lane) for lane in self.lanes]
        return asdict(self) | {"lanes": lanes, "operations": self.operations}

    def figures(self, lane: Lane) -> dict[str, float | None]:
        """What a table shows of a lane."""
        median = lane.median
        return {
            "ms": None if median is None else 1e3 * median,
            "images/s": self.images_per_second(lane),
            "ours over it": self.ratio(lane),
            "share of product rate": self.share_of_products(lane),
        }


def _median(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def _divide(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator
