"""What ``build`` is asked for, as checked data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from deploy.errors import Complaint, InputError
from exporters.choices import (
    AttentionForm,
    Compute,
    ComputeUnits,
    FormatName,
    Layout,
    Opset,
    Parity,
    Sampler,
    System,
    UpscaleMode,
    options,
)
from exporters.guidance import KEYS
from exporters.layouts.schedule import Schedule
from exporters.student.configs import LARGEST, MOST_STEPS
from exporters.student.student import BUILTIN_STUDENT
from exporters.student.weights.lora.source import Lora

MAX_STAGES = 48


_WORDS: dict[str, tuple[str | int | None, ...]] = {
    "format": options(FormatName),
    "compute_units": (None, *options(ComputeUnits)),
    "system": (None, *options(System)),
    "attention": (None, *options(AttentionForm)),
    "opset": (None, *options(Opset)),
    "layout": options(Layout),
    "precision": (None, *options(Compute)),
    "sampler": (None, *options(Sampler)),
    "upscale_mode": (None, *options(UpscaleMode)),
    "parity": options(Parity),
}
_COREML_OPTIONS = {"compute_units": "--compute-units", "stages": "--stages", "system": "--target", "attention": "--attention"}


@dataclass(frozen=True)
class BuildRequest:
    """What to build; ``None`` leaves the choice to the student, then to the tier.

    Attributes:
        student: a student's folder or single file.
        tier: a key of ``tiers.toml``.
        output: the bundle's folder.
        format: ``onnx`` or ``coreml``.
        compute_units: what Core ML programs are made for.
        stages: programs that the denoiser becomes in Core ML.
        system: the oldest that must run Core ML programs (``--target``).
        attention: of Core ML programs: one operation for all heads, or one einsum for each. Default: by the compute units.
        opset: of ONNX graphs: 23, or 21 for older runtimes. Default: 23.
        layout: ``native``, ``optimum`` (ONNX) or ``swift`` (Core ML).
        precision: how matrices are stored, all alike.
        profile: a profile's file, in place of a precision.
        calibration: a folder that ``flash-deploy calibrate`` made of this student; without it every scheme is data-free.
        height: picture height in pixels.
        width: picture width in pixels.
        other_sizes: height and width of pictures that can be drawn beside (layout ``native``, of fixed sizes).
        dynamic: let height and width change at run time.
        steps: denoising steps.
        sigmas: noise levels before the scheduler's shift, one for each step.
        sigmas_after_shift: likewise, as they are.
        timesteps: what the transformer is told at each step, in place of 1000 times its noise level.
        shift: of noise levels, in place of the scheduler's.
        sampler: ``euler``, ``renoise`` or ``dpmpp``.
        scales: sizes of the latents of each step, as shares of the last: they grow from step to step.
        upscale_mode: how they are enlarged.
        guidance_scale: of classifier-free guidance, which a picture has where it is not asked for another; this and what follows
            as in :class:`exporters.guidance.Guidance`.
        negative_prompt: what guidance goes away from.
        guidance_interval: noise levels of steps that are guided.
        skip_guidance_layers: of the transformer, for skip-layer guidance.
        skip_layer_guidance_scale: its scale.
        skip_layer_guidance_start: where it begins.
        skip_layer_guidance_stop: where it ends.
        vae_bands: of rows in which the VAE is computed (layout ``native`` in ONNX, of a fixed size), for less memory. Default: as
            few as the tier's memory asks for; 1 where all of it fits at once.
        vae_encoder: with the VAE's encoder, so that pictures can be drawn upon (layout ``native``; ``optimum`` always has it).
        keep_t5: keep the third text encoder.
        max_sequence_length: T5 tokens, kept or dropped.
        variant: variant of the student's weight files.
        ignore_lora: do without a LoRA that lies beside them; else such a student is refused.
        lora: LoRAs to merge into its weights, in their order.
        components: of the student that come from elsewhere, by name; as :func:`exporters.student.open.open_student` takes them.
        parity: measure each graph against diffusers: ``auto`` leaves out graphs of more than 1 GiB.
        web_runtime: a folder that ``flash-deploy web-runtime`` made, for bundles that draw in browsers.
        force: replace a bundle that is there.
    """

    output: Path
    student: Path = BUILTIN_STUDENT
    tier: str = "desktop-cpu"
    format: FormatName = "onnx"
    compute_units: ComputeUnits | None = None
    stages: int | None = None
    system: System | None = None
    attention: AttentionForm | None = None
    opset: Opset | None = None
    layout: Layout = "native"
    precision: Compute | None = None
    profile: Path | None = None
    calibration: Path | None = None
    height: int | None = None
    width: int | None = None
    other_sizes: tuple[tuple[int, int], ...] = ()
    dynamic: bool = False
    steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    sigmas_after_shift: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    shift: float | None = None
    sampler: Sampler | None = None
    scales: tuple[float, ...] | None = None
    upscale_mode: UpscaleMode | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    guidance_interval: tuple[float, float] | None = None
    skip_guidance_layers: tuple[int, ...] | None = None
    skip_layer_guidance_scale: float | None = None
    skip_layer_guidance_start: float | None = None
    skip_layer_guidance_stop: float | None = None
    vae_bands: int | None = None
    vae_encoder: bool = False
    keep_t5: bool | None = None
    max_sequence_length: int | None = None
    variant: str | None = None
    ignore_lora: bool = False
    lora: tuple[Lora, ...] = ()
    components: Mapping[str, Path] = field(default_factory=dict)
    parity: Parity = "auto"
    web_runtime: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        most = dict.fromkeys(("height", "width", "stages", "max_sequence_length", "vae_bands"), LARGEST) | {"steps": MOST_STEPS}
        complaints = [
            Complaint(name, "wrong", f"a whole number from 1 to {limit}", repr(value))
            for name, limit in most.items()
            if (value := getattr(self, name)) is not None and (not isinstance(value, int) or not 1 <= value <= limit)
        ]
        complaints += [
            Complaint("other_sizes", "wrong", f"two whole numbers from 1 to {LARGEST}", repr(size))
            for size in self.other_sizes
            if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= LARGEST for side in size)
        ]
        complaints += [
            Complaint(name, "unknown", " or ".join(map(str, words)), repr(getattr(self, name)))
            for name, words in _WORDS.items()
            if getattr(self, name) not in words
        ]
        complaints += self._format_complaints()
        if complaints:
            raise InputError("The request cannot be fulfilled.", complaints)

    @property
    def schedule(self) -> Schedule:
        """What is wanted of the schedule."""
        return Schedule(**{one.name: getattr(self, one.name) for one in fields(Schedule)})

    @property
    def guidance(self) -> dict[str, Any]:
        """What is said of guidance, by its names; None where nothing is."""
        return {key: getattr(self, key) for key in KEYS}

    def _format_complaints(self) -> list[Complaint]:
        """Options of one format beside another."""
        if (self.vae_bands or 1) > 1 and (self.format, self.layout, self.dynamic) != ("onnx", "native", False):
            what = "are of ONNX graphs of the layout native and of a fixed size"
            return [Complaint("--vae-bands", what, "1", str(self.vae_bands))]
        if self.format == "onnx":
            given = [option for name, option in _COREML_OPTIONS.items() if getattr(self, name) is not None]
            complaints = [Complaint(option, "is an option of --format coreml") for option in given]
            if self.layout == "swift":
                complaints.append(Complaint("--layout", "is a layout of Core ML bundles", "native or optimum", self.layout))
            return complaints
        complaints = []
        if self.opset is not None:
            complaints.append(Complaint("--opset", "is an option of --format onnx"))
        if self.dynamic:
            complaints.append(Complaint("--dynamic", "Core ML bundles have a fixed size", "--height and --width"))
        if self.layout == "optimum":
            complaints.append(Complaint("--layout", "is a layout of ONNX bundles", "native or swift", self.layout))
        if self.layout == "swift" and self.vae_encoder:
            why = "the Swift client takes an encoder of 4 latent channels alone"
            complaints.append(Complaint("--vae-encoder", why, "--layout native", "swift"))
        if self.layout == "swift" and (self.stages or 1) > 1:
            complaints.append(Complaint("--stages", "the Swift client has one transformer", "1", str(self.stages)))
        if (self.stages or 1) > MAX_STAGES:
            complaints.append(Complaint("--stages", "too many", f"at most {MAX_STAGES}", str(self.stages)))
        return complaints
