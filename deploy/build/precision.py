"""What a profile lets a bundle promise, and what its graphs compute in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from deploy.build.format import FormatName
from quantization.profile import Profile

if TYPE_CHECKING:
    from deploy.tiers.tier import Tier


def promised_precision(profile: Profile) -> Literal["fp32", "fp16", "mixed"]:
    """Only a profile of floating-point schemes promises such a scheme's accuracy."""
    names = {rule.scheme.name for rule in profile.rules}
    if names == {"fp32"}:
        return "fp32"
    return "fp16" if names <= {"fp32", "fp16"} else "mixed"


def computes_in(profile: Profile, model_format: FormatName, tier: Tier) -> Literal["fp32", "fp16"]:
    """What matrices compute in.

    An fp32 bundle is for accuracy: nothing of it is computed in fp16, whatever the tier could do.
    """
    if promised_precision(profile) == "fp32":
        return "fp32"
    return "fp16" if model_format == "coreml" else tier.compute
