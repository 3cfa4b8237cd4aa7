"""Whether a bundle fits its tier, known before anything is traced; and which uniform scheme would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.build.format import unsupported
from deploy.build.plan import Plan
from deploy.bundle.memory import RUNTIME_BYTES
from deploy.errors import Complaint, InputError, TierError
from deploy.text import megabytes
from deploy.tiers.profiles import computes_in, default_profile
from deploy.tiers.read import tier_data
from deploy.tiers.schema import Tier
from deploy.tiers.tier import all_tiers, find_tier, legal_schemes
from exporters.choices import WITH_FUNCTIONS, Compute, ComputeUnits, FormatName, System
from exporters.layouts.native import can_be_in_bands
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphSpec
from exporters.student.weights.weight import Weight
from quantization.calibration import Layer
from quantization.profile import Profile, Rule
from quantization.schemes import Scheme, parse_scheme

LEAST_BANDS, MOST_BANDS = 4, 64
"""Of a VAE: fewer save nothing, and more are thousands of operators, which take memory themselves."""


@dataclass(frozen=True)
class Sizes:
    """What a bundle takes.

    Attributes:
        stored: bytes of each graph's weights on disk.
        memory: bytes of each graph when it is loaded and run.
    """

    stored: Mapping[str, int]
    memory: Mapping[str, int]

    @property
    def stored_bytes(self) -> int:
        """All graphs on disk."""
        return sum(self.stored.values())

    @property
    def largest(self) -> str:
        """The graph that takes most memory."""
        return max(self.memory, key=self.memory.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """The memory of a generation, which loads one graph after another."""
        return RUNTIME_BYTES + self.memory[self.largest]

    def fits(self, tier: Tier) -> bool:
        """Whether a tier has room for it."""
        return self.stored_bytes <= tier.download_bytes and self.peak_bytes <= tier.memory_bytes


@dataclass(frozen=True)
class Destination:
    """What a bundle is for.

    Attributes:
        name: the tier's name.
        tier: the tier.
        model_format: of the bundle.
        compute_units: of a Core ML bundle.
        system: the oldest that must run a Core ML bundle.
    """

    name: str
    tier: Tier
    model_format: FormatName = "onnx"
    compute_units: ComputeUnits | None = None
    system: System | None = None

    @classmethod
    def of(cls, plan: Plan) -> Destination:
        """What a plan's bundle is for."""
        return cls(plan.request.tier, plan.tier, plan.request.format, plan.compute_units, plan.system)

    @property
    def schemes(self) -> tuple[str, ...]:
        """How its runtimes can store weights."""
        return legal_schemes(self.tier, self.model_format, self.compute_units, self.system)

    @property
    def shares_weights(self) -> bool:
        """Whether graphs of several sizes store what they have in common once."""
        return self.model_format == "onnx" or self.system in WITH_FUNCTIONS

    def unsupported(self, weight: Weight, scheme: Scheme) -> bool:
        """Whether its format has no form for a weight in a scheme."""
        return bool(unsupported(self.model_format, _layer(weight), weight.shape, scheme, self.tier, self.system))


def estimated_sizes(graphs: Sequence[GraphSpec], profile: Profile, goal: Destination) -> Sizes:
    """What a bundle will take, from the student's tensors alone: within a percent of what its graphs turn out to be."""
    compute = computes_in(profile, goal.model_format, goal.tier)
    stored, memory = {}, {}
    for graph in graphs:
        schemes = list(_stored(graph, profile, goal))
        own = () if graph.shares and goal.shares_weights else schemes
        stored[graph.name] = sum(scheme.size_bytes(weight.shape) for weight, scheme in own)
        memory[graph.name] = _memory_bytes(graph, schemes, goal, compute)
    return Sizes(stored, memory)


def _stored(graph: GraphSpec, profile: Profile, goal: Destination) -> Iterator[tuple[Weight, Scheme]]:
    """Each of a graph's tensors, and how it will be stored: as its rule says, where the format has such a form."""
    vectors = parse_scheme("fp16" if goal.model_format == "coreml" else "fp32")
    for weight in graph.student_weights.values():
        scheme = vectors
        if len(weight.shape) > 1:
            scheme = profile.scheme(weight.component, weight.name)
            if scheme.kind != "float" and goal.unsupported(weight, scheme):
                scheme = parse_scheme("fp16")
        yield weight, scheme


def _memory_bytes(graph: GraphSpec, schemes: Sequence[tuple[Weight, Scheme]], goal: Destination, compute: Compute) -> int:
    if goal.model_format == "coreml":
        from exporters.coreml.memory import memory_bytes

        return memory_bytes(graph.parameters, graph, compute)
    from exporters.onnx.memory import live_bytes, weight_bytes

    held = sum(weight_bytes(_layer(weight), scheme, weight.shape, compute) for weight, scheme in schemes)
    return held + live_bytes(graph)


def best_uniform(graphs: Sequence[GraphSpec], goal: Destination) -> tuple[str, Profile, Sizes] | None:
    """The largest of a tier's schemes with which all weights that can take it fit its budgets; none where none does.

    Size stands for quality here: among uniform schemes more bits are better, and `tune` measures.

    Returns:
        Its name, the profile, and what the bundle takes with it.
    """
    fitting = []
    for name in goal.schemes:
        profile = _uniform(graphs, parse_scheme(name), goal)
        sizes = estimated_sizes(graphs, profile, goal)
        if sizes.fits(goal.tier):
            fitting.append((name, profile, sizes))
    return max(fitting, key=lambda item: item[2].stored_bytes, default=None)


def _uniform(graphs: Sequence[GraphSpec], scheme: Scheme, goal: Destination) -> Profile:
    """One scheme for every matrix that can take it; the others take 8 bits, where the tier has them, or fp16."""
    rest = parse_scheme("int8" if "int8" in goal.schemes and scheme.kind != "float" else "fp16")
    reason = f"the tier's default does not fit its budgets, {scheme.name} for all does"
    rules = [Rule("*", "*", scheme if scheme.kind == "float" else rest, reason)]
    if scheme.kind == "float":
        return Profile(tuple(rules))
    matrices = {(w.component, w.name): w for graph in graphs for w in graph.student_weights.values() if len(w.shape) > 1}
    unfit = {key for key, weight in matrices.items() if goal.unsupported(weight, scheme)}
    for component in dict.fromkeys(component for component, _ in matrices):
        own = {key for key in matrices if key[0] == component}
        if len(own & unfit) > len(own - unfit):  # a VAE: fewer rules the other way round
            rules += [Rule(component, name, scheme, reason) for _, name in sorted(own - unfit)]
        else:
            rules.append(Rule(component, "*", scheme, reason))
            rules += [Rule(component, name, rest, "has no such form") for _, name in sorted(own & unfit)]
    return Profile(tuple(rules))


def check_budget(sizes: Sizes, goal: Destination, graphs: Sequence[GraphSpec], profile: Profile) -> None:
    """Refuse a bundle that its tier has no room for.

    Args:
        sizes: what it takes.
        goal: what it is for.
        graphs: its graphs.
        profile: how it stores weights.

    Raises:
        TierError: with the numbers and what would fit: the best uniform profile, roomier tiers.
    """
    tier, complaints, remedies = goal.tier, [], []
    if sizes.fits(tier):
        return
    best = best_uniform(graphs, goal)
    if best is not None and _schemes(best[1]) != _schemes(profile):
        remedies.append(
            f"a profile of {best[0]} for all fits ({best[2].stored_bytes / 1e9:.2f} GB): `build --save-profile FILE` writes it"
        )
        if sizes.stored_bytes > tier.download_bytes:
            remedies.append(f"`flash-deploy tune --tier {goal.name} --max-bytes {tier.download_bytes}` finds a better one")
    elif best is None:
        able = [name for name, other in all_tiers().items() if _could_hold(graphs, name, other, goal.model_format)]
        remedies.append(f"no uniform profile of this tier fits; tiers with one that does: {', '.join(able) or 'none'}")
    if sizes.stored_bytes > tier.download_bytes:
        complaints.append(_over("download", tier.download_bytes, sizes.stored_bytes))
    if sizes.peak_bytes > tier.memory_bytes:
        complaints.append(_over(f"memory ({sizes.largest}, the largest graph)", tier.memory_bytes, sizes.peak_bytes))
        compressed = " or smaller weights" if goal.model_format == "onnx" else ""  # Core ML may expand them when it loads them
        roomier = [n for n, it in all_tiers().items() if goal.model_format in it.formats and it.memory_bytes >= sizes.peak_bytes]
        remedies.append(
            f"a smaller picture{compressed} would take less memory; tiers with as much: {', '.join(roomier) or 'none'}"
        )
    raise TierError(f"The bundle exceeds the budget of the tier {goal.name}.", complaints, "; ".join(remedies))


def _schemes(profile: Profile) -> list[tuple[str, str, str]]:
    return [(rule.component, rule.weights, rule.scheme.name) for rule in profile.rules]


def _could_hold(graphs: Sequence[GraphSpec], name: str, tier: Tier, model_format: FormatName) -> bool:
    return model_format in tier.formats and best_uniform(graphs, Destination(name, tier, model_format)) is not None


def _over(what: str, budget: int, got: int) -> Complaint:
    return Complaint(what, "over the tier's budget", f"at most {budget / 1e9:.2f} GB", f"{got / 1e9:.2f} GB")


def _layer(weight: Weight) -> Layer:
    """What kind of layer a matrix is of, as far as its name and shape tell."""
    if len(weight.shape) > 2:
        return "convolution"
    tables = "embedding" in weight.name or weight.name in ("shared.weight", "encoder.embed_tokens.weight")
    return "embedding" if tables or "relative_attention_bias" in weight.name else "linear"


def estimate(plan: Plan) -> Sizes:
    """What a plan's bundle will take."""
    return estimated_sizes(plan.graphs, plan.profile, Destination.of(plan))


def estimated_disk_bytes(plan: Plan, sizes: Sizes) -> int:
    """What building takes of the disk: Core ML graphs are written in plain fp16, too, for a while."""
    if plan.request.format != "coreml":
        return sizes.stored_bytes
    shared = sum(sizes.stored[graph.shares] for graph in plan.graphs if graph.shares)  # each size is written first
    return sizes.stored_bytes + shared + sum(2 * graph.parameters for graph in plan.graphs)


def in_bands(plan: Plan) -> Plan:
    """The plan with its VAE in as few bands of rows as its tier's memory asks for, where nobody says how many.

    One whose VAE fits at once, or in no number of bands, stays as it is.
    """
    request, options, room = plan.request, plan.options, plan.tier.memory_bytes - RUNTIME_BYTES
    can = request.format == "onnx" and request.layout == "native" and not options.dynamic
    if request.vae_bands is not None or not can or not can_be_in_bands(plan.student):
        return plan
    at_once = _vae_bytes(plan)
    heights = [height for height, _ in options.picture_sizes]
    counts = [count for count in range(LEAST_BANDS, MOST_BANDS + 1) if all(height // 4 % count == 0 for height in heights)]
    for count in counts if at_once > room else ():
        changed = replace(options, vae_bands=count)
        cut = replace(plan, options=changed, graphs=tuple(plan_graphs(plan.student, changed)))
        if _vae_bytes(cut) <= room:
            note = (
                f"the VAE is computed in {count} bands of rows: at once it would take {(at_once + RUNTIME_BYTES) / 1e9:.2f} GB "
                f"of memory, and {request.tier} has {plan.tier.memory_bytes / 1e9:.2f} GB"
            )
            return replace(cut, notes=(*plan.notes, note))
    return plan


def _vae_bytes(plan: Plan) -> int:
    """Memory of the larger of its VAE's graphs."""
    memory = estimate(plan).memory
    return max(memory[graph.name] for graph in plan.graphs if graph.components == ("vae",))


def fitting(plan: Plan) -> tuple[str, Profile, Sizes]:
    """The profile that a plan's bundle can be stored by: its own, or the best uniform one where that does not fit the tier.

    Returns:
        The uniform one's scheme, or nothing; the profile; and what the bundle takes.

    Raises:
        TierError: none fits.
    """
    goal, sizes = Destination.of(plan), estimate(plan)
    if sizes.fits(plan.tier):
        return "", plan.profile, sizes
    best = best_uniform(plan.graphs, goal)
    if best is None:
        check_budget(sizes, goal, plan.graphs, plan.profile)
    assert best is not None
    return best


def fitted(plan: Plan) -> Plan:
    """The plan, its VAE in bands where all of it does not fit at once, and with a smaller profile where the tier's does not fit.

    That profile is the user's choice by default; one that was asked for stays.

    Sizes need no trace: what cannot fit is told at once.

    Raises:
        TierError: the profile that was asked for does not fit, or none does.
    """
    plan = in_bands(plan)
    name, profile, smaller = fitting(plan)
    if not name:
        return plan
    sizes = estimate(plan)
    if plan.request.profile is not None or plan.request.precision is not None:
        check_budget(sizes, Destination.of(plan), plan.graphs, plan.profile)
    larger = [other for other in tier_data().made_from(plan.request.tier) if _has_room(other, plan)]
    note = (
        f"the default profile of {plan.request.tier} takes {sizes.stored_bytes / 1e9:.2f} GB and {sizes.peak_bytes / 1e9:.2f} GB "
        f"of memory, more than the tier has: {name} for all in its place ({smaller.stored_bytes / 1e9:.2f} GB and "
        f"{smaller.peak_bytes / 1e9:.2f} GB of memory)"
    )
    if larger:
        note += f"; made for students of this size: --tier {' or '.join(larger)}"
    return replace(plan, profile=profile, notes=(*plan.notes, note))


def _has_room(name: str, plan: Plan) -> bool:
    """Whether another tier's own profile makes a bundle that fits it."""
    model_format, tier = plan.request.format, find_tier(name)
    if model_format not in tier.formats:
        return False
    destination = Destination(name, tier, model_format, plan.compute_units, plan.system)
    try:
        return estimated_sizes(plan.graphs, default_profile(name, model_format), destination).fits(tier)
    except InputError:  # it is told of when a bundle is built for that tier
        return False


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to write what the disk has no room for.

    Raises:
        InputError: it has too little.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        complaint = Complaint(str(folder), "too little disk", megabytes(needed), f"{megabytes(free)} free")
        raise InputError("The bundle does not fit on the disk.", [complaint], "free some space or build elsewhere")
