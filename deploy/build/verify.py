"""Check a bundle: its files against their checksums and, given the student, its graphs and pictures against diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.bundle.folder import Bundle, check_files, open_bundle
from deploy.bundle.manifest import Manifest
from deploy.errors import Complaint
from deploy.runtime.pipeline import Pipeline
from quantization.profile import Profile, Rule
from quantization.schemes import parse_scheme

if TYPE_CHECKING:
    from exporters.layouts.sampling import Sampling
    from exporters.layouts.swift_schedule import ClientSchedule
    from exporters.student.student import Student, StudentSource
    from exporters.student.weights.lora.source import Lora

PSNR_REQUIRED_DB = {"fp32": 50.0, "fp16": 40.0}
"""Pictures against diffusers in fp32. For fp16: graphs at 50 dB, whose errors a few steps and the VAE add up.
A profile with integer schemes promises nothing: its figures are reported."""


@dataclass
class Report:
    """What a verification found.

    Attributes:
        files: how many files were checked.
        graph_db: worst signal-to-noise ratio of each graph, in dB.
        picture_db: PSNR of each prompt's picture, in dB.
        complaints: everything that is wrong; a bundle without any is good.
    """

    files: int = 0
    graph_db: dict[str, float] = field(default_factory=dict)
    picture_db: dict[str, float] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)


def verify(
    folder: Path | str,
    student: Path | None = None,
    variant: str | None = None,
    progress: Callable[[str], None] | None = None,
    pictures: bool = True,
    ignore_lora: bool = False,
    lora: Iterable[Lora | Path | str] = (),
    components: Mapping[str, Path | str] = MappingProxyType({}),
) -> Report:
    """Verify a bundle.

    Args:
        folder: the bundle.
        student: also measure each graph and whole pictures against this student in diffusers; needs the export extra.
        variant: variant of the student's weight files.
        progress: told of every stage.
        pictures: draw with the student, too; otherwise only its graphs are measured.
        ignore_lora: do without a LoRA that lies beside the student's weights; else such a student is refused.
        lora: LoRAs to merge into the student's weights, as :func:`exporters.student.open.open_student` takes them.
        components: of the student that come from elsewhere, likewise.

    Raises:
        InputError: the bundle or the student cannot be opened.
    """
    tell = progress or (lambda text: None)
    bundle = open_bundle(folder)
    report = Report(files=len(bundle.manifest.files))
    tell("checking files")
    report.complaints += check_files(bundle)
    if student is not None and not report.complaints:
        from exporters.student.open import as_components
        from exporters.student.student import StudentSource
        from exporters.student.weights.lora.source import as_loras
        from exporters.student.weights.templates import OPTIONAL_COMPONENTS

        without = () if bundle.manifest.text.t5 == "kept" else OPTIONAL_COMPONENTS
        source = StudentSource(student, variant, ignore_lora, without, as_loras(lora), as_components(components))
        _verify_numerics(bundle, source, pictures, report, tell)
    return report


def bundle_options(bundle: Bundle) -> Any:
    """The options that the bundle's graphs were made with."""
    from exporters.layouts.spec import GraphOptions

    manifest = bundle.manifest
    return GraphOptions(
        layout=manifest.layout,
        height=manifest.picture.height,
        width=manifest.picture.width,
        timesteps=manifest.sampling.timesteps,
        clip_tokens=manifest.text.tokenizers[0].max_length,
        keep_t5=manifest.text.t5 == "kept",
        max_sequence_length=manifest.text.max_sequence_length,
        dynamic=manifest.picture.dynamic,
        client=_client_of(manifest),
        guided=manifest.layout == "swift" and manifest.sampling.guided.on,
        vae_encoder=manifest.has("vae_encoder"),
        sizes=manifest.sizes,
        other_sizes=manifest.picture.sizes[1:],
    )


def _client_of(manifest: Manifest) -> ClientSchedule | None:
    """What the Swift client draws by."""
    from exporters.layouts.swift_schedule import ClientSchedule

    record = manifest.client_schedule
    return None if record is None else ClientSchedule(record.steps, record.shift, record.timesteps, record.scales)


def sampling_of(manifest: Manifest) -> Sampling:
    """The schedule that a bundle pins."""
    from exporters.layouts.sampling import Sampling

    record = manifest.sampling
    return Sampling(
        record.method,
        record.sigmas,
        record.timesteps,
        record.guided,
        record.combinations,
        record.scales,
        record.upscale_mode,
    )


def profile_of(manifest: Manifest) -> Profile:
    """The profile that a bundle was made with."""
    rules = [Rule(r.component, r.weights, parse_scheme(r.scheme), r.reason) for r in manifest.profile]
    return Profile(tuple(rules))


def _verify_numerics(bundle: Bundle, source: StudentSource, pictures: bool, report: Report, tell: Callable[[str], None]) -> None:
    from exporters.student.open import open_source

    manifest = bundle.manifest
    student = open_source(source)
    tell("fingerprinting the student")
    if (got := student.fingerprint()) != manifest.student.fingerprint:
        kept = manifest.text.t5 == "kept"
        got += ", without text_encoder_3, whose weights are not there" if kept and not student.has_t5 else ""
        report.complaints.append(
            Complaint(str(source.path), "the bundle was made of another student", manifest.student.fingerprint, got)
        )
        return
    pipeline = Pipeline(bundle)
    _verify_graphs(pipeline, student, report, tell)
    if pictures:
        _verify_pictures(pipeline, student, report, tell)


def _verify_graphs(pipeline: Pipeline, student: Student, report: Report, tell: Callable[[str], None]) -> None:
    from deploy.build.measure import graph_db
    from deploy.build.parity import REQUIRED_DB
    from exporters.errors import ExportError
    from exporters.layouts.plan import plan_graphs
    from exporters.reference.case import Texts
    from exporters.reference.parity import reference_cases

    bundle, manifest = pipeline.bundle, pipeline.manifest
    options = bundle_options(bundle)
    profile, texts, compute = profile_of(manifest), Texts(student, options), manifest.compute
    if manifest.version == 1 and manifest.model_format == "onnx" and compute == "fp16":
        what = "was made before builds looked at what fp16 cannot hold: on hardware that computes in fp16 it may draw NaN"
        report.complaints.append(Complaint(f"{bundle.folder}: version 1", f"{what}; build it again"))
        compute = "fp32"  # as the file runs here: how it rounds elsewhere is not known
    required = REQUIRED_DB[manifest.model_format].get(manifest.precision, float("-inf"))
    for graph in plan_graphs(student, options):
        tell(f"measuring {graph.name}")
        try:
            record, cases = manifest.graph(graph.name), reference_cases(graph, student, options, texts=texts)
            run = pipeline.load(graph.name)  # the kernels that `generate` runs
            with bundle.plain(graph.name) as folder:
                db = graph_db(manifest.model_format, compute, profile, graph, record, folder, run, cases)
        except ExportError as error:
            report.complaints += error.complaints
            continue
        report.graph_db[graph.name] = db
        if not db >= required:
            report.complaints.append(
                Complaint(graph.name, "does not compute what diffusers computes", f"{required} dB", f"{db} dB")
            )


def _verify_pictures(pipeline: Pipeline, student: Student, report: Report, tell: Callable[[str], None]) -> None:
    """Draw with the bundle, then with diffusers: the whole student in fp32 is in memory once, and no graph beside it."""
    from exporters.choices import PROMPTS
    from exporters.reference.decibels import psnr_db
    from exporters.reference.diffusers import reference_pipeline
    from exporters.reference.pictures import PinnedPipeline

    manifest = pipeline.manifest
    own, *others = manifest.picture.sizes
    given = {size: _noise(manifest, size) for size in (own, *others)}
    jobs = [(prompt, prompt, own) for prompt in PROMPTS]
    jobs += [(f"{PROMPTS[0]}, {size[1]} x {size[0]} px", PROMPTS[0], size) for size in others]
    drawn = []
    for name, prompt, size in jobs:
        tell(f"drawing {name!r}")
        latents, noise = given[size]
        drawn.append(pipeline.generate(prompt, latents=latents, step_noise=noise, height=size[0], width=size[1]))
    tell("opening the student in diffusers")
    reference = reference_pipeline(student, manifest.text.t5 == "kept")
    pinned = PinnedPipeline(reference, sampling_of(manifest), manifest.text.max_sequence_length)
    required = PSNR_REQUIRED_DB.get(manifest.precision, float("-inf"))
    for (name, prompt, size), got in zip(jobs, drawn, strict=True):
        tell(f"drawing {name!r} with diffusers")
        latents, noise = given[size]
        db = report.picture_db[name] = psnr_db(pinned.draw(prompt, latents, noise[0])[0], got)
        if not db >= required:
            report.complaints.append(Complaint(name, "is drawn differently from diffusers", f"{required} dB PSNR", f"{db} dB"))


def _noise(manifest: Manifest, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Initial latents ``[1, channels, height / 8, width / 8]``, and what re-noising adds, ``[1, steps, ...]``."""
    picture, rng = manifest.picture, np.random.default_rng(0)
    shape = (picture.latent_channels, *(side // picture.pixels_per_latent for side in size))
    latents = rng.standard_normal((1, *shape), np.float32)
    return latents, rng.standard_normal((1, len(manifest.sampling.timesteps), *shape), np.float32)
