"""Device tiers by name, and what they can run."""

from __future__ import annotations

from deploy.errors import Complaint, TierError
from deploy.tiers.read import tier_data
from deploy.tiers.schema import Tier
from exporters.choices import ComputeUnits, FormatName, System

IOS17_SCHEMES = ("fp32", "fp16", "int8", "lut1", "lut2", "lut4", "lut6", "lut8")
"""Without blocks, and with one table for a tensor: coremltools' ``constexpr`` operations up to iOS 17."""


def all_tiers() -> dict[str, Tier]:
    """Every tier by name."""
    return tier_data().tiers


def find_tier(name: str) -> Tier:
    """The tier of that name.

    Raises:
        TierError: there is none.
    """
    tiers = all_tiers()
    if name not in tiers:
        raise TierError("Unknown tier.", [Complaint("--tier", "no such tier", " or ".join(tiers), name)])
    return tiers[name]


def check_format(name: str, model_format: str) -> None:
    """Refuse a format that a tier does not run.

    Raises:
        TierError: with the formats that it does run.
    """
    tier = find_tier(name)
    if model_format not in tier.formats:
        able = ", ".join(other for other, candidate in all_tiers().items() if model_format in candidate.formats)
        complaint = Complaint("--format", f"the tier {name} does not run it", " or ".join(tier.formats), model_format)
        raise TierError("The tier cannot have this bundle.", [complaint], f"tiers that run {model_format}: {able}")


def legal_schemes(
    tier: Tier, model_format: FormatName = "onnx", compute_units: ComputeUnits | None = None, system: System | None = None
) -> tuple[str, ...]:
    """How a tier's runtimes can store weights: what searches and defaults choose from."""
    if model_format == "onnx":
        return tier.schemes
    assert tier.coreml is not None
    able = tier.coreml.schemes[compute_units or tier.coreml.compute_units]
    return able if (system or tier.coreml.system) == "iOS18" else tuple(name for name in able if name in IOS17_SCHEMES)


def profile_schemes(
    tier: Tier, model_format: FormatName = "onnx", compute_units: ComputeUnits | None = None, system: System | None = None
) -> tuple[str, ...]:
    """All that a profile may ask for, as patterns: what a tier chooses from, and what it runs beside."""
    legal = legal_schemes(tier, model_format, compute_units, system)
    if model_format == "onnx":
        return (*legal, *tier.profile_schemes)
    assert tier.coreml is not None
    newer = (system or tier.coreml.system) == "iOS18"
    return (*legal, *(tier.coreml.profile_schemes.get(compute_units or tier.coreml.compute_units, ()) if newer else ()))
