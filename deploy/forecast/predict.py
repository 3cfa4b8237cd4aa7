"""How long a bundle takes on devices that are not here: forecasts from what its graphs cost and what the devices can do.

No forecast is a measurement: each carries a range, and says what it is bound by. Loading graphs is not in it, nor is what it
costs to hand values from one processor to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.forecast.cost import GraphCost
from benchmarks.forecast.roofline import GraphTime, predict
from deploy.bundle.folder import Bundle, open_bundle
from deploy.bundle.manifest import GraphRecord, Manifest
from deploy.errors import Complaint, TierError
from deploy.forecast.targets import places
from deploy.tiers.schema import ForecastTarget
from deploy.tiers.tier import check_format, find_tier
from exporters.scales import Size, step_sizes, unsized_graph

NOTE = "analytical forecasts, nothing was run; loading is not counted, and work is taken to scale over cores"
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
        """The time of one picture, graphs loaded."""
        return sum(graph.runs * graph.time.seconds for graph in self.graphs)

    @property
    def range_seconds(self) -> tuple[float, float]:
        """Between what it should lie."""
        low, high = (
            sum(graph.runs * graph.time.seconds * graph.time.actual_over_predicted[side] for graph in self.graphs)
            for side in (0, 1)
        )
        return low, high

    def shares(self, name: str) -> dict[str, float]:
        """``bounds`` or ``placement`` of the whole picture: what its time is spent on, or where."""
        totals: dict[str, float] = {}
        for graph in self.graphs:
            for key, share in getattr(graph.time, name).items():
                totals[key] = totals.get(key, 0.0) + share * graph.runs * graph.time.seconds / max(self.seconds, 1e-30)
        return dict(sorted(totals.items(), key=lambda item: -item[1]))


def costs(bundle: Bundle) -> dict[str, GraphCost]:
    """What each graph of a bundle costs in one run, at the bundle's own picture size.

    Where latents grow from step to step, the denoiser is counted at each size, the smaller ones under names of their own.

    Raises:
        InputError: a graph cannot be read.
    """
    manifest = bundle.manifest
    if manifest.model_format == "coreml":
        from benchmarks.forecast.coreml_cost import count_packages

        counted = {}
        for graph in manifest.graphs:
            with bundle.plain(graph.name) as folder:
                counted[graph.name] = count_packages(graph.name, [folder / stage.path for stage in graph.stages], graph.function)
        return counted
    from benchmarks.forecast.onnx_cost import count_onnx

    counted = {}
    for graph in manifest.graphs:
        for name, (size, _) in _counted(manifest, graph.name).items():
            counted[name] = count_onnx(bundle.file(graph.path), _sizes(manifest, graph, size))
    return counted


def predictions(
    bundle: Bundle | Path | str, tiers: Sequence[str] = (), counted: dict[str, GraphCost] | None = None
) -> list[Prediction]:
    """Predict one picture of a bundle.

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
    graph_costs = costs(bundle) if counted is None else counted
    predicted = []
    for name in names:
        targets = {key: target for key, target in find_tier(name).targets.items() if _fits(target, bundle.manifest)}
        if not targets:
            units = bundle.manifest.compute_units or "any"
            raise TierError(
                "The tier has no forecast for this bundle.", [Complaint("--tier", f"no target for {units}", got=name)]
            )
        predicted += [_prediction(name, key, target, bundle.manifest, graph_costs) for key, target in targets.items()]
    return predicted


def _fits(target: ForecastTarget, manifest: Manifest) -> bool:
    if target.only_mixed and manifest.precision != "mixed":
        return False
    return target.format == manifest.model_format and target.compute_units in (None, manifest.compute_units)


def _prediction(
    tier: str, name: str, target: ForecastTarget, manifest: Manifest, graph_costs: dict[str, GraphCost]
) -> Prediction:
    graphs = []
    for graph in manifest.graphs:
        if graph.name in NOT_DRAWN_WITH:
            continue
        run_once = not _in_every_step(graph.name) and graph.name != "vae_decoder"
        for counted, (_, runs) in _counted(manifest, graph.name).items():
            graphs.append(GraphPrediction(counted, runs, predict(graph_costs[counted], places(target, run_once))))
    everywhere = {**places(target), **places(target, run_once=True)}
    return Prediction(
        tier,
        name,
        "; ".join(place.processor.description for place in everywhere.values()),
        tuple(dict.fromkeys(place.efficiency.source for place in (*places(target).values(), *places(target, True).values()))),
        tuple(graphs),
    )


def _in_every_step(graph: str) -> bool:
    return unsized_graph(graph)[0] in EVERY_STEP


def _counted(manifest: Manifest, graph: str) -> dict[str, tuple[Size, int]]:
    """Under which names a graph is counted, with the size of latents there, and how often a picture runs it at that size.

    Under none where only pictures of another size than the default run it.
    """
    whole, sampling, own = manifest.latent_size, manifest.sampling, unsized_graph(graph)[1]
    if not _in_every_step(graph):
        return {} if own else {graph: (whole, 1)}
    steps = len(sampling.timesteps)
    if manifest.layout == "swift":  # its transformer predicts for the prompt and for the negative prompt at once
        return {graph: (whole, steps)}
    passes: dict[Size, int] = {}
    for size, often in zip(
        step_sizes(sampling.scales, whole, steps), sampling.guided.passes_of_steps(sampling.sigmas), strict=True
    ):
        passes[size] = passes.get(size, 0) + often
    if not manifest.picture.dynamic:  # each size has a graph
        size = own or whole
        return {graph: (size, passes[size])} if size in passes else {}
    pixels = manifest.picture.pixels_per_latent
    return {
        graph if size == whole else f"{graph}, {pixels * size[1]} x {pixels * size[0]} px": (size, often)
        for size, often in passes.items()
    }


def _sizes(manifest: Manifest, graph: GraphRecord, latent: Size) -> dict[str, int]:
    """Sizes that a graph leaves open, for latents of a size."""
    picture, text = manifest.picture, manifest.text
    tokens = {tokenizer.input: tokenizer.max_length for tokenizer in text.tokenizers}
    own = {"text_encoder": "input_ids", "text_encoder_2": "input_ids_2", "text_encoder_3": "input_ids_3"}
    sequence = tokens.get(own.get(graph.name, ""), tokens["input_ids"] + text.max_sequence_length)
    return {
        "batch": 1,
        "sequence": sequence,
        "height": picture.height,
        "width": picture.width,
        "latent_height": latent[0],
        "latent_width": latent[1],
    }
