"""The profile that a tier stores weights by, what its runtimes cannot store, and what a profile promises."""

from __future__ import annotations

from importlib import resources

from deploy.errors import Complaint, TierError
from deploy.tiers.read import tier_data
from deploy.tiers.schema import Tier
from deploy.tiers.tier import find_tier, profile_schemes
from exporters.choices import Compute, ComputeUnits, FormatName, Precision, System
from quantization.profile import Profile, load_profile
from quantization.schemes import one_of


def default_profile(name: str, model_format: FormatName = "onnx") -> Profile:
    """The profile of a tier's bundles unless the user says otherwise: ``profiles/NAME.toml``, ``profiles/NAME.coreml.toml``.

    It is looked for beside the user's own tiers file, then among those of this package; and for a tier without one, the tier's
    that it extends.

    Raises:
        TierError: there is none.
        ProfileError: it cannot be used.
    """
    data, suffix = tier_data(), ".toml" if model_format == "onnx" else f".{model_format}.toml"
    for each in data.line(name):
        for folder in (*data.folders, resources.files("deploy.tiers")):
            with resources.as_file(folder.joinpath("profiles", each + suffix)) as file:
                if file.is_file():
                    return load_profile(file)
    where = " or ".join(str(folder.joinpath("profiles", name + suffix)) for folder in data.folders)
    raise TierError(
        f"The tier {name} has no profile.", [Complaint(where, "is missing")], "write it, or give a profile with --profile"
    )


def check_schemes(
    name: str,
    profile: Profile,
    model_format: FormatName = "onnx",
    compute_units: ComputeUnits | None = None,
    system: System | None = None,
) -> None:
    """Refuse schemes that a tier's runtimes cannot run.

    Raises:
        TierError: there are such.
    """
    able = profile_schemes(find_tier(name), model_format, compute_units, system)
    where = "the tier" if system != "iOS17" else "iOS 17"
    complaints = [
        Complaint(f"rule {i + 1}", f"{where} cannot run its scheme", " or ".join(able), rule.scheme.name)
        for i, rule in enumerate(profile.rules)
        if not one_of(rule.scheme.name, able)
    ]
    if complaints:
        raise TierError(f"The tier {name} cannot run this profile.", complaints, "`flash-deploy tiers` lists what each can run")


def promised_precision(profile: Profile) -> Precision:
    """What a bundle promises: only a profile of floating-point schemes promises such a scheme's accuracy."""
    names = {rule.scheme.name for rule in profile.rules}
    if names == {"fp32"}:
        return "fp32"
    return "fp16" if names <= {"fp32", "fp16"} else "mixed"


def computes_in(profile: Profile, model_format: FormatName, tier: Tier) -> Compute:
    """What matrices compute in.

    An fp32 bundle is for accuracy: nothing of it is computed in fp16, whatever the tier could do.
    """
    if promised_precision(profile) == "fp32":
        return "fp32"
    return "fp16" if model_format == "coreml" else tier.compute
