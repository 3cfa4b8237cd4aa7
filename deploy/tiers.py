"""Device tiers: ``tiers.toml`` as checked data."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Annotated, Literal

import msgspec

from deploy.errors import Complaint, TierError


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A class of devices.

    Attributes:
        description: in words.
        formats: model formats that it runs.
        compute: what matrices compute in.
        precision: how weights are stored unless the user says otherwise.
        attention: the attention operator of its ONNX graphs.
        resolution: picture size in pixels unless the user or the student says otherwise.
        steps: denoising steps unless the user or the student says otherwise.
        keep_t5: whether the third text encoder is kept unless the user says otherwise.
    """

    description: str
    formats: tuple[Literal["onnx"], ...]
    compute: Literal["fp32", "fp16"]
    precision: Literal["fp32", "fp16"]
    attention: Literal["MultiHeadAttention", "Attention"]
    resolution: Annotated[int, msgspec.Meta(gt=0)]
    steps: Annotated[int, msgspec.Meta(gt=0)]
    keep_t5: bool


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
