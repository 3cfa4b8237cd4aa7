"""How long a graph takes on a processor that is not here: a roofline over its operators.

::

    time of an operator = max(FLOPs / (peak * efficiency), bytes / bandwidth) + overhead

(and in products of blocks the rounding of activations beside the FLOPs).

Peaks and bandwidths are the vendor's; which share of them a runtime reaches was measured where that can be done
(``python -m benchmarks.studies.roofline.fit``) or derived from published latencies
(``python -m benchmarks.studies.roofline.published``), and stands with its error in ``efficiencies.toml``. A time predicted so is
no measurement: it carries the range that the error makes of it.

S. Williams, A. Waterman, D. Patterson: Roofline, an insightful visual performance model for multicore architectures.
Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import collections
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Annotated, Literal

import msgspec

from benchmarks.forecast.cost import Arithmetic, GraphCost, Group, Operator, Work

Positive = Annotated[float, msgspec.Meta(gt=0)]
Unit = Literal["fp32", "fp16", "bf16", "int8"]
BLOCKS = ("blocks8", "blocks4")
SHORT_SECONDS = 1e-3  # what takes less is overhead, which runtimes fuse away: not predicted well
Bound = Literal["arithmetic", "bandwidth", "overhead"]


class Efficiency(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which share of a kind of processor's peaks a runtime reaches.

    Attributes:
        source: how that is known.
        product: of matrix products, by what they multiply; ``any`` stands for the rest.
        attention: of attention.
        convolution: of convolutions.
        weights: of the bandwidth, reading weights.
        activations: likewise, reading and writing activations; over 1 where caches hold them. None where the other shares contain
            what that costs.
        rounding: of the bandwidth, for the activations of products in blocks, beside their arithmetic: kernels round inputs to
            int8 and scale results before and after they multiply. None where the other shares contain it.
        overhead_us: of starting one operator, in microseconds.
        runs_as: what is multiplied as something else: ``blocks8 = "int8"`` where activations are rounded, ``"fp16"`` where
            blocks are unfolded.
        actual_over_predicted: between these two, in nine of ten cases that were not used to find the shares; of published
            latencies, in all of them.
    """

    source: str
    product: dict[Literal["fp32", "fp16", "w8a8", "blocks8", "blocks4", "any"], Positive]
    attention: Positive
    convolution: Positive
    weights: Positive
    activations: Positive | None = None
    rounding: Positive | None = None
    overhead_us: Annotated[float, msgspec.Meta(ge=0)]
    runs_as: dict[Arithmetic, Unit] = msgspec.field(default_factory=dict)
    actual_over_predicted: tuple[Positive, Positive]

    def share(self, group: Group, arithmetic: Arithmetic) -> float:
        """The share of the peak that an operator reaches."""
        if group == "attention":
            return self.attention
        if group == "convolution":
            return self.convolution
        named: dict[str, float] = {str(key): share for key, share in self.product.items()}
        return named.get(arithmetic, named.get("any", min(named.values())))


class Processor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What computes, as its vendor describes it.

    Attributes:
        description: in words.
        peak_gflops: 10^9 FLOPs a second by what is multiplied; a multiply-add is two. What is not named cannot be computed.
        bandwidth_gb_s: of its memory, 10^9 bytes a second.
    """

    description: str
    peak_gflops: dict[Unit, Positive]
    bandwidth_gb_s: Positive


@dataclass(frozen=True)
class Place:
    """A runtime on a processor.

    Attributes:
        processor: with its peaks.
        efficiency: the shares of them that it reaches.
        runs_as: what is multiplied as something else, beyond what the efficiency says.
        lacks: kinds of operators that it does not run.
    """

    processor: Processor
    efficiency: Efficiency
    runs_as: Mapping[Arithmetic, Unit] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()

    def peak(self, *arithmetics: Arithmetic) -> float | None:
        """10^9 FLOPs a second of the first of these that it can multiply; none where it can none."""
        for arithmetic in arithmetics:
            unit = self.runs_as.get(arithmetic, self.efficiency.runs_as.get(arithmetic, arithmetic))
            if unit in self.processor.peak_gflops:
                return self.processor.peak_gflops[unit]  # type: ignore[index]
        return None

    def runs(self, operator: Operator) -> float | None:
        """10^9 FLOPs a second for an operator; none where it is not run here."""
        return None if operator.kind in self.lacks else self.peak(operator.arithmetic, operator.dtype)

    def seconds(self, work: Work, arithmetic: Arithmetic, peak_gflops: float) -> tuple[float, Bound]:
        """An operator's time, and what it is spent on."""
        if work.group in ("view", "uncounted"):
            return 0.0, "overhead"
        shares = self.efficiency
        computing = work.flops / (1e9 * peak_gflops * shares.share(work.group, arithmetic))
        if shares.rounding is not None and work.group == "product" and arithmetic in BLOCKS:
            computing += work.activation_bytes / (1e9 * self.processor.bandwidth_gb_s * shares.rounding)
        moved = work.weight_bytes / shares.weights
        if shares.activations is not None:
            moved += work.activation_bytes / shares.activations
        moving = moved / (1e9 * self.processor.bandwidth_gb_s)
        overhead = shares.overhead_us / 1e6
        spent: dict[Bound, float] = {"arithmetic": computing, "bandwidth": moving, "overhead": overhead}
        return max(computing, moving) + overhead, max(spent, key=spent.__getitem__)


@dataclass(frozen=True)
class OperatorTime:
    """An operator on a processor.

    Attributes:
        operator: which.
        processor: where.
        seconds: how long one of it takes.
        bound: what that is spent on.
    """

    operator: Operator
    processor: str
    seconds: float
    bound: Bound


@dataclass(frozen=True)
class GraphTime:
    """A graph on processors, predicted.

    Attributes:
        cost: what it does.
        operators: each operator's time.
        actual_over_predicted: of the processor that most of the time is spent on.
    """

    cost: GraphCost
    operators: tuple[OperatorTime, ...]
    actual_over_predicted: tuple[float, float]

    @property
    def seconds(self) -> float:
        """The time of one run: operators one after another."""
        return sum(operator.seconds for operator in self.operators)

    def _shares(self, name: Literal["bound", "processor"]) -> dict[str, float]:
        totals: dict[str, float] = collections.defaultdict(float)
        for operator in self.operators:
            totals[getattr(operator, name)] += operator.seconds
        return {key: seconds / max(self.seconds, 1e-30) for key, seconds in sorted(totals.items(), key=lambda item: -item[1])}

    @property
    def bounds(self) -> dict[str, float]:
        """What the time is spent on, as shares of it, the largest first."""
        return self._shares("bound")

    @property
    def placement(self) -> dict[str, float]:
        """Where the time is spent, as shares of it, the largest first."""
        return self._shares("processor")

    @property
    def placed(self) -> dict[str, int]:
        """How many operators run where; reshapes, which move nothing, are left out."""
        return dict(collections.Counter(time.processor for time in self.operators if time.operator.work.group != "view"))


def predict(cost: GraphCost, places: Mapping[str, Place]) -> GraphTime:
    """Predict a graph's time.

    Args:
        cost: what it does.
        places: by the processor's name, the first choice first; an operator goes to the first that runs it. Operators on
            integers, which no vendor gives a peak for, go to the last and cost what they move. What it costs to go from one
            processor to another is not known, and not counted.
    """
    times = []
    for operator in cost.operators:
        name, peak = _place(operator, places)
        spent, bound = places[name].seconds(operator.work, operator.arithmetic, peak)
        times.append(OperatorTime(operator, name, spent, bound))
    busy: dict[str, float] = collections.defaultdict(float)
    for time in times:
        busy[time.processor] += time.seconds
    most = max(busy, key=busy.__getitem__) if busy else next(iter(places))
    return GraphTime(cost, tuple(times), places[most].efficiency.actual_over_predicted)


def _place(operator: Operator, places: Mapping[str, Place]) -> tuple[str, float]:
    for name, place in places.items():
        peak = place.runs(operator)
        if peak is not None:
            return name, peak
    last = list(places)[-1]
    return last, max(places[last].processor.peak_gflops.values())


@lru_cache(maxsize=1)
def known_efficiencies() -> dict[str, Efficiency]:
    """``efficiencies.toml``, as the two commands above wrote it."""
    text = resources.files("benchmarks.forecast").joinpath("efficiencies.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Efficiency])
