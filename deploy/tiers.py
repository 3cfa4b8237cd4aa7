"""Device tiers: ``tiers.toml`` as checked data."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Annotated, Literal

import msgspec

from deploy.errors import Complaint, TierError
from quantization.profile import Profile, load_profile


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A class of devices.

    Attributes:
        description: in words.
        formats: model formats that it runs.
        memory_bytes: what one generation may take at its peak.
        download_bytes: what a bundle may take on disk.
        schemes: how its runtimes can store weights.
        compute: what matrices compute in.
        attention: the attention operator of its ONNX graphs.
        resolution: picture size in pixels unless the user or the student says otherwise.
        steps: denoising steps unless the user or the student says otherwise.
        keep_t5: whether the third text encoder is kept unless the user says otherwise.
        relative_time: time of a product in a scheme over its time in fp32, where it was measured.
        page: whether its bundles hold a page that draws in browsers.
    """

    description: str
    formats: tuple[Literal["onnx"], ...]
    memory_bytes: Annotated[int, msgspec.Meta(gt=0)]
    download_bytes: Annotated[int, msgspec.Meta(gt=0)]
    schemes: tuple[str, ...]
    compute: Literal["fp32", "fp16"]
    attention: Literal["MultiHeadAttention", "Attention"]
    resolution: Annotated[int, msgspec.Meta(gt=0)]
    steps: Annotated[int, msgspec.Meta(gt=0)]
    keep_t5: bool
    relative_time: dict[str, float] = msgspec.field(default_factory=dict)
    page: bool = False


@lru_cache(maxsize=1)
def all_tiers() -> dict[str, Tier]:
    """Every tier by name."""
    text = resources.files("deploy").joinpath("tiers.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Tier])


def find_tier(name: str) -> Tier:
    """The tier of that name.

    Raises:
        TierError: there is none.
    """
    tiers = all_tiers()
    if name not in tiers:
        raise TierError("Unknown tier.", [Complaint("--tier", "no such tier", " or ".join(tiers), name)])
    return tiers[name]


def default_profile(name: str) -> Profile:
    """The profile that a tier's bundles are built with unless the user says otherwise: ``profiles/NAME.toml``."""
    with resources.as_file(resources.files("deploy").joinpath("profiles", f"{name}.toml")) as file:
        return load_profile(file)


def check_schemes(name: str, profile: Profile) -> None:
    """Refuse schemes that a tier's runtimes cannot run.

    Raises:
        TierError: there are such.
    """
    tier = find_tier(name)
    complaints = [
        Complaint(f"rule {i + 1}", "the tier cannot run its scheme", " or ".join(tier.schemes), rule.scheme.name)
        for i, rule in enumerate(profile.rules)
        if rule.scheme.name not in tier.schemes
    ]
    if complaints:
        raise TierError(f"The tier {name} cannot run this profile.", complaints, "`flash-deploy tiers` lists what each can run")
