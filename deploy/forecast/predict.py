"""How long a bundle takes on devices that are not here: forecasts from what its graphs cost and what the devices can do.

No forecast is a measurement: each carries a range, and says what it is bound by. Loading graphs is not in it, nor is what it
costs to hand values from one processor to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.forecast.cost import Arithmetic, GraphCost, Work, total
from benchmarks.forecast.roofline import GraphTime, Place, predict
from deploy.bundle.folder import Bundle, open_bundle
from deploy.bundle.inspect import megabytes, table
from deploy.bundle.manifest import GraphRecord, Manifest
from deploy.errors import Complaint, TierError
from deploy.tiers.tier import ForecastTarget, check_format, find_tier, places
from quantization.calibration import Layer
from quantization.schemes import Scheme

NOTE = "analytical forecasts, nothing was run; loading is not counted, and work is taken to scale over cores"
SHORT_SECONDS = 1e-3  # as the calibration has it: python -m benchmarks.studies.roofline.fit
EVERY_STEP = ("denoiser", "transformer")
NOT_DRAWN_WITH = ("vae_encoder",)


@dataclass(frozen=True)
class GraphPrediction:
    """One graph's part of a picture.

    Attributes:
        name: of the graph.
        runs: how often a picture runs it.
        time: one run, operator by operator.
    """

    name: str
    runs: int
    time: GraphTime


@dataclass(frozen=True)
class Prediction:
    """One picture of a bundle on a tier's target.

    Attributes:
        tier: name of the tier.
        target: name of its target.
        description: of the processors, the first choice first.
        sources: where the efficiencies come from.
        graphs: in the order in which they run.
    """

    tier: str
    target: str
    description: str
    sources: tuple[str, ...]
    graphs: tuple[GraphPrediction, ...]

    @property
    def seconds(self) -> float:
        """Of one picture, graphs loaded."""
        return sum(graph.runs * graph.time.seconds for graph in self.graphs)

    @property
    def range_seconds(self) -> tuple[float, float]:
        """Between what it should lie."""
        low, high = (
            sum(graph.runs * graph.time.seconds * graph.time.actual_over_foretold[side] for graph in self.graphs)
            for side in (0, 1)
        )
        return low, high

    def shares(self, name: str) -> dict[str, float]:
        """``bounds`` or ``placement`` of the whole picture: what its time is spent on, or where."""
        found: dict[str, float] = {}
        for graph in self.graphs:
            for key, share in getattr(graph.time, name).items():
                found[key] = found.get(key, 0.0) + share * graph.runs * graph.time.seconds / max(self.seconds, 1e-30)
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def costs(bundle: Bundle) -> dict[str, GraphCost]:
    """What each graph of a bundle costs in one run, at the bundle's own picture size.

    Raises:
        InputError: a graph cannot be read.
    """
    manifest = bundle.manifest
    if manifest.model_format == "coreml":
        from benchmarks.forecast.coreml_cost import count_packages

        counted = {}
        for graph in manifest.graphs:
            with bundle.plain(graph.name) as folder:
                counted[graph.name] = count_packages(graph.name, [folder / stage.path for stage in graph.stages])
        return counted
    from benchmarks.forecast.onnx_cost import count_onnx

    return {graph.name: count_onnx(bundle.file(graph.path), _sizes(manifest, graph)) for graph in manifest.graphs}


def predictions(
    bundle: Bundle | Path | str, tiers: Sequence[str] = (), counted: dict[str, GraphCost] | None = None
) -> list[Prediction]:
    """Foretell one picture of a bundle.

    Args:
        bundle: an opened bundle or its folder.
        tiers: names; by default the bundle's own.
        counted: what :func:`costs` found, where it was called already.

    Returns:
        For each tier, a forecast for each of its targets that runs the bundle, the usual target first.

    Raises:
        InputError: the bundle is damaged, there is no such tier, or it does not run the bundle's format.
    """
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    names = tiers or (bundle.manifest.tier,)
    for name in names:
        check_format(name, bundle.manifest.model_format)
    found = costs(bundle) if counted is None else counted
    made = []
    for name in names:
        targets = {key: target for key, target in find_tier(name).targets.items() if _fits(target, bundle.manifest)}
        if not targets:
            units = bundle.manifest.compute_units or "any"
            raise TierError(
                "The tier has no forecast for this bundle.", [Complaint("--tier", f"no target for {units}", got=name)]
            )
        made += [_prediction(name, key, target, bundle.manifest, found) for key, target in targets.items()]
    return made


def _fits(target: ForecastTarget, manifest: Manifest) -> bool:
    if target.only_mixed and manifest.precision != "mixed":
        return False
    return target.format == manifest.model_format and target.compute_units in (None, manifest.compute_units)


def _prediction(tier: str, name: str, target: ForecastTarget, manifest: Manifest, found: dict[str, GraphCost]) -> Prediction:
    steps = len(manifest.sampling.timesteps)
    graphs = []
    for graph in manifest.graphs:
        if graph.name in NOT_DRAWN_WITH:
            continue
        often = graph.name in EVERY_STEP
        run_once = not often and graph.name != "vae_decoder"
        graphs.append(GraphPrediction(graph.name, steps if often else 1, predict(found[graph.name], places(target, run_once))))
    everywhere = {**places(target), **places(target, run_once=True)}
    return Prediction(
        tier,
        name,
        "; ".join(place.processor.description for place in everywhere.values()),
        tuple(dict.fromkeys(place.efficiency.source for place in (*places(target).values(), *places(target, True).values()))),
        tuple(graphs),
    )


def _sizes(manifest: Manifest, graph: GraphRecord) -> dict[str, int]:
    """Sizes that a graph leaves open, as a picture of the bundle's own size has them."""
    picture, text = manifest.picture, manifest.text
    tokens = {tokenizer.input: tokenizer.max_length for tokenizer in text.tokenizers}
    own = {"text_encoder": "input_ids", "text_encoder_2": "input_ids_2", "text_encoder_3": "input_ids_3"}
    sequence = tokens.get(own.get(graph.name, ""), tokens["input_ids"] + text.max_sequence_length)
    return {
        "batch": 1,
        "sequence": sequence,
        "height": picture.height,
        "width": picture.width,
        "latent_height": picture.height // picture.pixels_per_latent,
        "latent_width": picture.width // picture.pixels_per_latent,
    }


@dataclass(frozen=True)
class ProductTimes:
    """Times of products with weights on a tier, foretold scheme by scheme before there is a graph.

    Args:
        tier: name of the tier.
        model_format: of the bundle.
        compute_units: of a Core ML bundle.
    """

    tier: str
    model_format: str
    compute_units: str | None = None

    def seconds(self, layer: Layer, scheme: Scheme, rows: float, shape: tuple[int, ...]) -> float:
        """A weight's products in one picture.

        Args:
            layer: what reads the weight.
            scheme: how it is stored.
            rows: how many rows it is multiplied with in one picture, over all steps.
            shape: of the weight, ``[out, in, ...]``.
        """
        if layer == "embedding":
            return 0.0
        elements = math.prod(shape)
        arithmetic = self._arithmetic(layer, scheme)
        place, peak = self._place(arithmetic)
        # Read once at least: in each step again, but then many rows share the reading, and arithmetic is what bounds it.
        work = Work(
            "convolution" if layer == "convolution" else "product",
            multiply_adds=round(rows * elements),
            weight_bytes=scheme.size_bytes(shape),
            activation_bytes=round(4 * rows * (shape[0] + elements // shape[0])),
        )
        return place.seconds(work, arithmetic, peak)[0]

    def _arithmetic(self, layer: Layer, scheme: Scheme) -> Arithmetic:
        if self.model_format == "coreml":
            return "fp16"
        if layer == "linear" and scheme.dynamic_activations:
            return "w8a8"
        if layer == "linear" and scheme.block is not None:
            return "blocks8" if scheme.bits == 8 else "blocks4"
        return find_tier(self.tier).compute

    def _place(self, arithmetic: Arithmetic) -> tuple[Place, float]:
        units = self.compute_units or getattr(find_tier(self.tier).coreml, "compute_units", None)
        for target in find_tier(self.tier).targets.values():
            if target.format == self.model_format and target.compute_units in (None, units):
                for place in places(target).values():
                    peak = place.peak(arithmetic, find_tier(self.tier).compute)
                    if peak is not None:
                        return place, peak
        raise TierError("The tier has no forecast.", [Complaint("--tier", f"nothing multiplies {arithmetic}", got=self.tier)])


def as_data(bundle: Bundle, found: dict[str, GraphCost], made: Sequence[Prediction]) -> dict[str, Any]:
    """Costs and forecasts as plain data, for JSON; seconds, FLOPs and bytes."""
    return {
        "bundle": str(bundle.folder),
        "note": NOTE,
        "graphs": {
            name: {
                "multiply_adds": cost.multiply_adds,
                "flops": cost.flops,
                "weight_bytes": cost.weight_bytes,
                "activation_bytes": cost.activation_bytes,
                "uncounted": cost.uncounted,
                "kinds": {kind: {"operators": count, **_work_data(work)} for kind, (count, work) in cost.by_kind().items()},
            }
            for name, cost in found.items()
        },
        "predictions": [
            {
                "tier": p.tier,
                "target": p.target,
                "processors": p.description,
                "efficiencies": list(p.sources),
                "picture_seconds": p.seconds,
                "range_seconds": list(p.range_seconds),
                "bounds": p.shares("bounds"),
                "placement": p.shares("placement"),
                "graphs": {
                    g.name: {
                        "runs": g.runs,
                        "seconds": g.time.seconds,
                        "actual_over_foretold": list(g.time.actual_over_foretold),
                        "bounds": g.time.bounds,
                        "placement": g.time.placement,
                        "operators": g.time.placed,
                    }
                    for g in p.graphs
                },
            }
            for p in made
        ],
    }


def _work_data(work: Work) -> dict[str, int]:
    return {
        "multiply_adds": work.multiply_adds,
        "flops": work.flops,
        "weight_bytes": work.weight_bytes,
        "activation_bytes": work.activation_bytes,
    }


def render(bundle: Bundle, found: dict[str, GraphCost], made: Sequence[Prediction]) -> str:
    """Costs and forecasts as text."""
    rows: list[tuple[str, ...]] = [("graph", "multiply-adds", "FLOPs", "weights read", "activations moved")]
    for name, cost in found.items():
        moved = megabytes(cost.weight_bytes), megabytes(cost.activation_bytes)
        rows.append((name, _count(cost.multiply_adds), _count(cost.flops), *moved))
    runs = {graph.name: graph.runs for graph in made[0].graphs} if made else {}
    whole = total(work for name, cost in found.items() for work in runs.get(name, 0) * [_work(cost)])
    figures = _count(whole.multiply_adds), _count(whole.flops), megabytes(whole.weight_bytes), megabytes(whole.activation_bytes)
    rows.append(("a picture", *figures))
    lines = [f"bundle {bundle.folder}: one run of each graph (a multiply-add is two FLOPs)", "", *table(rows)]
    lines += [
        f"not counted: {count} of {what} in {name}" for name, cost in found.items() for what, count in cost.uncounted.items()
    ]
    for prediction in made:
        lines += ["", *_render(prediction)]
    return "\n".join([*lines, "", NOTE])


def _render(prediction: Prediction) -> list[str]:
    low, high = prediction.range_seconds
    rows: list[tuple[str, ...]] = [("graph", "runs", "one run", "range", "bound by", "where")]
    for graph in prediction.graphs:
        time = graph.time
        between = " to ".join(_time(time.seconds * side) for side in time.actual_over_foretold)
        rows.append((graph.name, str(graph.runs), _time(time.seconds), between, _percent(time.bounds), _percent(time.placement)))
    spread = f"{_time(low)} to {_time(high)}"
    return [
        f"{prediction.tier}, {prediction.target}: a picture in {_time(prediction.seconds)}, foretold; {spread}",
        f"  {prediction.description}",
        *(f"  {line}" for line in table(rows)),
        *(["  under 1 ms a forecast is the order of magnitude at best"] if _short(prediction) else []),
        *(f"  efficiency: {source}" for source in prediction.sources),
    ]


def _short(prediction: Prediction) -> bool:
    return any(graph.time.seconds < SHORT_SECONDS for graph in prediction.graphs)


def _work(cost: GraphCost) -> Work:
    return total(operator.work for operator in cost.operators)


def _percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)


def _count(number: int) -> str:
    """Many operations, as people read them.

    >>> _count(2_500_000_000), _count(31_000)
    ('2.50 G', '0.03 M')
    """
    for unit, size in (("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number / 1e6:.2f} M"


def _time(seconds: float) -> str:
    """A time with its unit.

    >>> _time(0.00123), _time(12.34)
    ('1.23 ms', '12.3 s')
    """
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
