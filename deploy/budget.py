"""Whether a bundle fits its tier, and what would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deploy.errors import Complaint, TierError
from deploy.formats import ComputeUnits, FormatName, Target, unsupported
from deploy.memory import RUNTIME_BYTES
from deploy.tiers import Tier, all_tiers, legal_schemes
from exporters.weights import Weight
from quantization.calibration import Layer
from quantization.schemes import parse_scheme


def check_budget(
    name: str,
    tier: Tier,
    stored_bytes: int,
    memory: Mapping[str, int],
    weights: Iterable[Weight],
    model_format: FormatName = "onnx",
    compute_units: ComputeUnits | None = None,
    target: Target | None = None,
) -> None:
    """Refuse a bundle that its tier has no room for.

    Args:
        name: the tier's name.
        tier: the tier.
        stored_bytes: of all graphs on disk.
        memory: of each graph when it is loaded, in bytes.
        weights: the student's matrices that are part of the bundle.
        model_format: of the bundle.
        compute_units: of a Core ML bundle.
        target: the oldest system that shall run a Core ML bundle.

    Raises:
        TierError: with the numbers and what would fit: the best uniform profile, roomier tiers.
    """
    complaints, remedies = [], []
    if stored_bytes > tier.download_bytes:
        complaints.append(_over("download", tier.download_bytes, stored_bytes))
        fits = _best_uniform(tier, list(weights), model_format, compute_units, target)
        remedies.append(f"a profile of {fits} fits the download" if fits else "no uniform profile of this tier fits")
        remedies.append(f"`flash-deploy tune --tier {name} --max-bytes {tier.download_bytes}` finds a better one")
    largest = max(memory, key=memory.__getitem__)
    peak = RUNTIME_BYTES + memory[largest]
    if peak > tier.memory_bytes:
        complaints.append(_over(f"memory ({largest}, the largest graph)", tier.memory_bytes, peak))
        compressed = " or smaller weights" if model_format == "onnx" else ""  # Core ML may expand them when it loads them
        roomier = [other for other, it in all_tiers().items() if model_format in it.formats and it.memory_bytes >= peak]
        remedies.append(
            f"a smaller picture{compressed} would take less memory; tiers with as much: {', '.join(roomier) or 'none'}"
        )
    if complaints:
        raise TierError(f"The bundle exceeds the budget of the tier {name}.", complaints, "; ".join(remedies))


def _over(what: str, budget: int, got: int) -> Complaint:
    return Complaint(what, "over the tier's budget", f"at most {budget / 1e9:.2f} GB", f"{got / 1e9:.2f} GB")


def _best_uniform(
    tier: Tier, weights: list[Weight], form: FormatName, compute_units: ComputeUnits | None, target: Target | None
) -> str:
    """The largest of the tier's schemes with which all weights fit its download, with its size; empty if none does."""
    sizes, legal = {}, legal_schemes(tier, form, compute_units, target)
    rest = parse_scheme("int8" if "int8" in legal else "fp16")
    for name in legal:
        scheme = parse_scheme(name)
        fit = {w: not unsupported(form, _layer(w), w.shape, scheme, tier, target) for w in weights}
        sizes[name] = sum((scheme if fits else rest).size_bytes(weight.shape) for weight, fits in fit.items())
    fitting = [name for name, size in sizes.items() if size <= tier.download_bytes]
    best = max(fitting, key=sizes.__getitem__, default=None)
    return "" if best is None else f"{best} for all ({sizes[best] / 1e9:.2f} GB)"


def _layer(weight: Weight) -> Layer:
    """What kind of layer a matrix is of, as far as its name and shape tell."""
    if len(weight.shape) > 2:
        return "convolution"
    return "embedding" if "embedding" in weight.name or weight.name == "shared.weight" else "linear"
