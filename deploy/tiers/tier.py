"""Device tiers: ``tiers.toml`` as checked data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Annotated, Literal

import msgspec

from benchmarks.forecast.cost import Arithmetic
from benchmarks.forecast.roofline import Place, Processor, Unit, known_efficiencies
from deploy.errors import Complaint, TierError
from quantization.profile import Profile, load_profile

IOS17_SCHEMES = ("fp32", "fp16", "int8", "lut1", "lut2", "lut4", "lut6", "lut8")
"""Without blocks, and with one table for a tensor: coremltools' ``constexpr`` operations up to iOS 17."""


class CoreMLTier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a class of Apple devices runs.

    Attributes:
        compute_units: what its programs are made for unless the user says otherwise.
        stages: programs that the denoiser becomes.
        target: the oldest system.
        attention: its form, by compute units.
        schemes: how weights can be stored, by compute units.
    """

    compute_units: Literal["cpu-and-ne", "cpu-and-gpu"]
    stages: Annotated[int, msgspec.Meta(gt=0)]
    target: Literal["iOS17", "iOS18"]
    attention: dict[Literal["cpu-and-ne", "cpu-and-gpu"], Literal["fused", "split-einsum"]]
    schemes: dict[Literal["cpu-and-ne", "cpu-and-gpu"], tuple[str, ...]]


class PlaceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A runtime on a processor, by their names.

    Attributes:
        processor: under ``processors``.
        efficiency: a section of ``benchmarks/forecast/efficiencies.toml``.
        runs_as: as :class:`benchmarks.forecast.roofline.Place` has it.
        lacks: likewise.
    """

    processor: str
    efficiency: str
    runs_as: dict[Arithmetic, Unit] = msgspec.field(default_factory=dict)
    lacks: tuple[str, ...] = ()


class ForecastTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a tier's bundles run on.

    Attributes:
        format: of the bundles.
        compute_units: of Core ML bundles.
        places: the first choice first; an operator goes to the first that runs it.
        run_once: places of graphs that run once for a picture (text, conditioner), where they are others.
        only_mixed: whether it foretells bundles with integer weights only.
    """

    format: Literal["onnx", "coreml"]
    compute_units: Literal["cpu-and-ne", "cpu-and-gpu"] | None = None
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
    formats: tuple[Literal["onnx", "coreml"], ...]
    memory_bytes: Annotated[int, msgspec.Meta(gt=0)]
    download_bytes: Annotated[int, msgspec.Meta(gt=0)]
    schemes: tuple[str, ...]
    compute: Literal["fp32", "fp16"]
    attention: Literal["MultiHeadAttention", "Attention"]
    resolution: Annotated[int, msgspec.Meta(gt=0)]
    steps: Annotated[int, msgspec.Meta(gt=0)]
    keep_t5: bool
    runtimes: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime",)
    targets: dict[str, ForecastTarget]
    coreml: CoreMLTier | None = None
    page: bool = False


@dataclass(frozen=True)
class TierData:
    """All of ``tiers.toml``."""

    tiers: dict[str, Tier]
    processors: dict[str, Processor]


@lru_cache(maxsize=1)
def tier_data() -> TierData:
    """``tiers.toml``, checked."""
    return parse_tiers(resources.files("deploy.tiers").joinpath("tiers.toml").read_text("utf-8"))


def parse_tiers(text: str) -> TierData:
    """Check the content of a tiers file.

    Raises:
        TierError: it is no TOML, has unknown or missing keys or wrong values, or names a processor or an efficiency that is not
            there.
    """
    try:
        content = tomllib.loads(text)
        processors = msgspec.convert(content.pop("processors", {}), dict[str, Processor])
        tiers = msgspec.convert(content, dict[str, Tier])
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise TierError("The tiers cannot be read.", [Complaint("tiers.toml", str(error))]) from error
    complaints = []
    for name, tier in tiers.items():
        for target_name, target in tier.targets.items():
            for place in (*target.places, *target.run_once):
                where = f"{name}.targets.{target_name}"
                for what, given, known in (
                    ("processor", place.processor, processors.keys()),
                    ("efficiency", place.efficiency, known_efficiencies().keys()),
                ):
                    if given not in known:
                        complaints.append(Complaint(where, f"no such {what}", " or ".join(known), given))
    if complaints:
        raise TierError("The tiers cannot be read.", complaints)
    return TierData(tiers, processors)


def all_tiers() -> dict[str, Tier]:
    """Every tier by name."""
    return tier_data().tiers


def places(target: ForecastTarget, run_once: bool = False) -> dict[str, Place]:
    """Where a target's operators run, by the processor's name.

    Args:
        target: which.
        run_once: of graphs that run once for a picture.
    """
    processors, known = tier_data().processors, known_efficiencies()
    records = target.run_once if run_once and target.run_once else target.places
    return {r.processor: Place(processors[r.processor], known[r.efficiency], r.runs_as, r.lacks) for r in records}


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
        able = ", ".join(other for other, known in all_tiers().items() if model_format in known.formats)
        complaint = Complaint("--format", f"the tier {name} does not run it", " or ".join(tier.formats), model_format)
        raise TierError("The tier cannot have this bundle.", [complaint], f"tiers that run {model_format}: {able}")


def default_profile(name: str, model_format: str = "onnx") -> Profile:
    """The profile of a tier's bundles unless the user says otherwise: ``profiles/NAME.toml``, ``profiles/NAME.coreml.toml``."""
    file_name = f"{name}.toml" if model_format == "onnx" else f"{name}.{model_format}.toml"
    with resources.as_file(resources.files("deploy.tiers").joinpath("profiles", file_name)) as file:
        return load_profile(file)


def legal_schemes(
    tier: Tier, model_format: str = "onnx", compute_units: str | None = None, target: str | None = None
) -> tuple[str, ...]:
    """How a tier's runtimes can store weights."""
    if model_format == "onnx":
        return tier.schemes
    assert tier.coreml is not None
    able = tier.coreml.schemes[compute_units or tier.coreml.compute_units]  # type: ignore[index]
    return able if (target or tier.coreml.target) == "iOS18" else tuple(name for name in able if name in IOS17_SCHEMES)


def check_schemes(
    name: str, profile: Profile, model_format: str = "onnx", compute_units: str | None = None, target: str | None = None
) -> None:
    """Refuse schemes that a tier's runtimes cannot run.

    Raises:
        TierError: there are such.
    """
    legal = legal_schemes(find_tier(name), model_format, compute_units, target)
    where = "the tier" if target != "iOS17" else "iOS 17"
    complaints = [
        Complaint(f"rule {i + 1}", f"{where} cannot run its scheme", " or ".join(legal), rule.scheme.name)
        for i, rule in enumerate(profile.rules)
        if rule.scheme.name not in legal
    ]
    if complaints:
        raise TierError(f"The tier {name} cannot run this profile.", complaints, "`flash-deploy tiers` lists what each can run")
