"""What a tiers file says of a class of devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from exporters.choices import AttentionForm, AttentionOperator, Compute, ComputeUnits, FormatName, OnnxRuntime, System


class CoreMLTier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a class of Apple devices runs.

    Attributes:
        compute_units: what its programs are made for unless the user says otherwise.
        stages: programs that the denoiser becomes.
        system: the oldest that runs them.
        attention: its form, by compute units.
        schemes: how weights can be stored, by compute units.
        profile_schemes: further ways, likewise, as of a tier.
    """

    compute_units: ComputeUnits
    stages: Annotated[int, msgspec.Meta(gt=0)]
    system: System
    attention: dict[ComputeUnits, AttentionForm]
    schemes: dict[ComputeUnits, tuple[str, ...]]
    profile_schemes: dict[ComputeUnits, tuple[str, ...]] = msgspec.field(default_factory=dict)


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
        schemes: how its runtimes can store weights: what searches and defaults choose from.
        profile_schemes: further ways, as patterns (``int2g*``): a profile may ask for them, nothing chooses them by itself.
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
    profile_schemes: tuple[str, ...] = ()
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
    """All of a tiers file.

    Attributes:
        tiers: by name.
        processors: by name, as :mod:`deploy.forecast.targets` reads them.
        extends: the tier that a tier was made from, by its name.
        folders: of the files, the user's first: profiles lie in ``profiles`` beside them.
    """

    tiers: dict[str, Tier]
    processors: dict[str, dict[str, Any]]
    extends: dict[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()

    def line(self, name: str) -> list[str]:
        """A tier's name, and those that it was made from, one after another."""
        names = [name]
        while names[-1] in self.extends and self.extends[names[-1]] not in names:
            names.append(self.extends[names[-1]])
        return names

    def made_from(self, name: str) -> list[str]:
        """The tiers that were made from a tier, at once or by way of others."""
        return [other for other in self.tiers if other != name and name in self.line(other)]
