"""Whether a bundle fits its tier, known before anything is traced; and which uniform scheme would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.build.format import ComputeUnits, FormatName, Target, coreml_memory_bytes, unsupported
from deploy.build.precision import computes_in
from deploy.bundle.memory import RUNTIME_BYTES
from deploy.errors import Complaint, TierError
from deploy.tiers.tier import Tier, all_tiers, legal_schemes
from exporters.layouts.spec import GraphSpec
from exporters.student.weights.weight import Weight
from quantization.calibration import Layer
from quantization.profile import Profile, Rule
from quantization.schemes import Scheme, parse_scheme


@dataclass(frozen=True)
class Sizes:
    """What a bundle takes.

    Attributes:
        stored_bytes: of all graphs on disk.
        memory: of each graph when it is loaded and run, in bytes.
    """

    stored_bytes: int
    memory: Mapping[str, int]

    @property
    def largest(self) -> str:
        """The graph that takes most memory."""
        return max(self.memory, key=self.memory.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """Of a generation, which loads one graph after another."""
        return RUNTIME_BYTES + self.memory[self.largest]

    def fits(self, tier: Tier) -> bool:
        """Whether a tier has room for it."""
        return self.stored_bytes <= tier.download_bytes and self.peak_bytes <= tier.memory_bytes


@dataclass(frozen=True)
class Place:
    """What a bundle is for.

    Attributes:
        name: the tier's name.
        tier: the tier.
        model_format: of the bundle.
        compute_units: of a Core ML bundle.
        target: the oldest system that shall run a Core ML bundle.
    """

    name: str
    tier: Tier
    model_format: FormatName = "onnx"
    compute_units: ComputeUnits | None = None
    target: Target | None = None

    @property
    def schemes(self) -> tuple[str, ...]:
        """How its runtimes can store weights."""
        return legal_schemes(self.tier, self.model_format, self.compute_units, self.target)

    def unsupported(self, weight: Weight, scheme: Scheme) -> bool:
        """Whether its format has no form for a weight in a scheme."""
        return bool(unsupported(self.model_format, _layer(weight), weight.shape, scheme, self.tier, self.target))


def estimated_sizes(graphs: Sequence[GraphSpec], profile: Profile, place: Place) -> Sizes:
    """What a bundle will take, from the student's tensors alone: within a percent of what its graphs turn out to be."""
    compute = computes_in(profile, place.model_format, place.tier)
    stored, memory = 0, {}
    for graph in graphs:
        schemes = list(_stored(graph, profile, place))
        stored += sum(scheme.size_bytes(weight.shape) for weight, scheme in schemes)
        memory[graph.name] = _memory_bytes(graph, schemes, place, compute)
    return Sizes(stored, memory)


def _stored(graph: GraphSpec, profile: Profile, place: Place) -> Iterator[tuple[Weight, Scheme]]:
    """Each of a graph's tensors, and how it will be stored: as its rule says, where the format has such a form."""
    vectors = parse_scheme("fp16" if place.model_format == "coreml" else "fp32")
    for weight in graph.student_weights.values():
        scheme = vectors
        if len(weight.shape) > 1:
            scheme = profile.scheme(weight.component, weight.name)
            if scheme.kind != "float" and place.unsupported(weight, scheme):
                scheme = parse_scheme("fp16")
        yield weight, scheme


def _memory_bytes(
    graph: GraphSpec, schemes: Sequence[tuple[Weight, Scheme]], place: Place, compute: Literal["fp32", "fp16"]
) -> int:
    if place.model_format == "coreml":
        return coreml_memory_bytes(graph.parameters, graph, compute)
    from exporters.onnx.memory import live_bytes, weight_bytes

    held = sum(weight_bytes(_layer(weight), scheme, weight.shape, compute) for weight, scheme in schemes)
    return held + live_bytes(graph)


def best_uniform(graphs: Sequence[GraphSpec], place: Place) -> tuple[str, Profile, Sizes] | None:
    """The largest of a tier's schemes with which all weights that can take it fit its budgets; none where none does.

    Size stands for quality here: among uniform schemes more bits are better, and `tune` measures.

    Returns:
        Its name, the profile, and what the bundle takes with it.
    """
    found = []
    for name in place.schemes:
        profile = _uniform(graphs, parse_scheme(name), place)
        sizes = estimated_sizes(graphs, profile, place)
        if sizes.fits(place.tier):
            found.append((name, profile, sizes))
    return max(found, key=lambda item: item[2].stored_bytes, default=None)


def _uniform(graphs: Sequence[GraphSpec], scheme: Scheme, place: Place) -> Profile:
    """One scheme for every matrix that can take it; the others take 8 bits, where the tier has them, or fp16."""
    rest = parse_scheme("int8" if "int8" in place.schemes and scheme.kind != "float" else "fp16")
    reason = f"the tier's default does not fit its budgets, {scheme.name} for all does"
    rules = [Rule("*", "*", scheme if scheme.kind == "float" else rest, reason)]
    if scheme.kind == "float":
        return Profile(tuple(rules))
    matrices = {(w.component, w.name): w for graph in graphs for w in graph.student_weights.values() if len(w.shape) > 1}
    unfit = {key for key, weight in matrices.items() if place.unsupported(weight, scheme)}
    for component in dict.fromkeys(component for component, _ in matrices):
        own = {key for key in matrices if key[0] == component}
        if len(own & unfit) > len(own - unfit):  # a VAE: fewer rules the other way round
            rules += [Rule(component, name, scheme, reason) for _, name in sorted(own - unfit)]
        else:
            rules.append(Rule(component, "*", scheme, reason))
            rules += [Rule(component, name, rest, "has no such form") for _, name in sorted(own & unfit)]
    return Profile(tuple(rules))


def check_budget(sizes: Sizes, place: Place, graphs: Sequence[GraphSpec], profile: Profile) -> None:
    """Refuse a bundle that its tier has no room for.

    Args:
        sizes: what it takes.
        place: what it is for.
        graphs: its graphs.
        profile: how it stores weights.

    Raises:
        TierError: with the numbers and what would fit: the best uniform profile, roomier tiers.
    """
    tier, complaints, remedies = place.tier, [], []
    if sizes.fits(tier):
        return
    best = best_uniform(graphs, place)
    if best is not None and _schemes(best[1]) != _schemes(profile):
        remedies.append(f"a profile of {best[0]} for all fits ({best[2].stored_bytes / 1e9:.2f} GB)")
        if sizes.stored_bytes > tier.download_bytes:
            remedies.append(f"`flash-deploy tune --tier {place.name} --max-bytes {tier.download_bytes}` finds a better one")
    elif best is None:
        able = [name for name, other in all_tiers().items() if _could_hold(graphs, name, other, place.model_format)]
        remedies.append(f"no uniform profile of this tier fits; tiers with one that does: {', '.join(able) or 'none'}")
    if sizes.stored_bytes > tier.download_bytes:
        complaints.append(_over("download", tier.download_bytes, sizes.stored_bytes))
    if sizes.peak_bytes > tier.memory_bytes:
        complaints.append(_over(f"memory ({sizes.largest}, the largest graph)", tier.memory_bytes, sizes.peak_bytes))
        compressed = " or smaller weights" if place.model_format == "onnx" else ""  # Core ML may expand them when it loads them
        roomier = [n for n, it in all_tiers().items() if place.model_format in it.formats and it.memory_bytes >= sizes.peak_bytes]
        remedies.append(
            f"a smaller picture{compressed} would take less memory; tiers with as much: {', '.join(roomier) or 'none'}"
        )
    raise TierError(f"The bundle exceeds the budget of the tier {place.name}.", complaints, "; ".join(remedies))


def _schemes(profile: Profile) -> list[tuple[str, str, str]]:
    return [(rule.component, rule.weights, rule.scheme.name) for rule in profile.rules]


def _could_hold(graphs: Sequence[GraphSpec], name: str, tier: Tier, model_format: FormatName) -> bool:
    return model_format in tier.formats and best_uniform(graphs, Place(name, tier, model_format)) is not None


def _over(what: str, budget: int, got: int) -> Complaint:
    return Complaint(what, "over the tier's budget", f"at most {budget / 1e9:.2f} GB", f"{got / 1e9:.2f} GB")


def _layer(weight: Weight) -> Layer:
    """What kind of layer a matrix is of, as far as its name and shape tell."""
    if len(weight.shape) > 2:
        return "convolution"
    tables = "embedding" in weight.name or weight.name in ("shared.weight", "encoder.embed_tokens.weight")
    return "embedding" if tables or "relative_attention_bias" in weight.name else "linear"
