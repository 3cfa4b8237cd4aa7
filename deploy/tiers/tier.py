"""Device tiers: ``tiers.toml`` as checked data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Annotated, Any

import msgspec

from deploy.errors import Complaint, TierError
from exporters.choices import AttentionForm, AttentionOperator, Compute, ComputeUnits, FormatName, OnnxRuntime, System

IOS17_SCHEMES = ("fp32", "fp16", "int8", "lut1", "lut2", "lut4", "lut6", "lut8")
"""Without blocks, and with one table for a tensor: coremltools' ``constexpr`` operations up to iOS 17."""


class CoreMLTier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a class of Apple devices runs.

    Attributes:
        compute_units: what its programs are made for unless the user says otherwise.
        stages: programs that the denoiser becomes.
        system: the oldest that runs them.
        attention: its form, by compute units.
        schemes: how weights can be stored, by compute units.
    """

    compute_units: ComputeUnits
    stages: Annotated[int, msgspec.Meta(gt=0)]
    system: System
    attention: dict[ComputeUnits, AttentionForm]
    schemes: dict[ComputeUnits, tuple[str, ...]]


class PlaceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A runtime on a processor, by their names.

    Attributes:
        processor: under ``processors``.
        efficiency: a section of ``benchmarks/forecast/efficiencies.toml``.
        runs_as: what is multiplied as something else, beyond what the efficiency says: ``{ blocks8 = "fp32" }``.
        lacks: kinds of operators that it does not run.
    """

    processor: str
    efficiency: str
    runs_as: dict[str, str] = msgspec.field(default_factory=dict)
    lacks: tuple[str, ...] = ()


class ForecastTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a tier's bundles run on.

    Attributes:
        format: of the bundles.
        compute_units: of Core ML bundles.
        places: the first choice first; an operator goes to the first that runs it.
        run_once: places of graphs that run once for a picture (text, conditioner), where they are others.
        only_mixed: whether it is for bundles with integer weights only.
    """

    format: FormatName
    compute_units: ComputeUnits | None = None
    places: Annotated[tuple[PlaceRecord, ...], msgspec.Meta(min_length=1)]
    run_once: tuple[PlaceRecord, ...] = ()
    only_mixed: bool = False


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
        runtimes: what runs its ONNX bundles, the fastest first (python -m benchmarks.studies.denoiser_step); OpenVINO is for
            x86-64.
        resolution: picture size in pixels unless the user or the student says otherwise.
        steps: denoising steps unless the user or the student says otherwise.
        keep_t5: whether the third text encoder is kept unless the user says otherwise.
        targets: what runs its bundles, by name, for forecasts; the first of a format is the usual one.
        coreml: what its Core ML bundles are; none where the format is not among its formats.
        page: whether its bundles hold a page that draws in browsers.
    """

    description: str
    formats: tuple[FormatName, ...]
    memory_bytes: Annotated[int, msgspec.Meta(gt=0)]
    download_bytes: Annotated[int, msgspec.Meta(gt=0)]
    schemes: tuple[str, ...]
    compute: Compute
    attention: AttentionOperator
    resolution: Annotated[int, msgspec.Meta(gt=0)]
    steps: Annotated[int, msgspec.Meta(gt=0)]
    keep_t5: bool
    runtimes: tuple[OnnxRuntime, ...] = ("onnxruntime",)
    targets: dict[str, ForecastTarget]
    coreml: CoreMLTier | None = None
    page: bool = False


@dataclass(frozen=True)
class TierData:
    """All of ``tiers.toml``.

    Attributes:
        tiers: by name.
        processors: by name, as :mod:`deploy.forecast.targets` reads them.
    """

    tiers: dict[str, Tier]
    processors: dict[str, dict[str, Any]]


@lru_cache(maxsize=1)
def tier_data() -> TierData:
    """``tiers.toml``, checked."""
    return parse_tiers(resources.files("deploy.tiers").joinpath("tiers.toml").read_text("utf-8"))


def parse_tiers(text: str) -> TierData:
    """Check the content of a tiers file.

    Raises:
        TierError: it is no TOML, or has unknown or missing keys or wrong values.
    """
    try:
        content = tomllib.loads(text)
        processors = msgspec.convert(content.pop("processors", {}), dict[str, dict[str, Any]])
        tiers = msgspec.convert(content, dict[str, Tier])
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise TierError("The tiers cannot be read.", [Complaint("tiers.toml", str(error))]) from error
    return TierData(tiers, processors)


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
    """How a tier's runtimes can store weights."""
    if model_format == "onnx":
        return tier.schemes
    assert tier.coreml is not None
    able = tier.coreml.schemes[compute_units or tier.coreml.compute_units]
    return able if (system or tier.coreml.system) == "iOS18" else tuple(name for name in able if name in IOS17_SCHEMES)
