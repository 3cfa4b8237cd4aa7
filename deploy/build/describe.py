"""What a bundle says of itself: its manifest, made of the plan and of what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from deploy.build.layout_files import write_layout_files
from deploy.build.plan import Plan
from deploy.build.resume import Done, tools
from deploy.build.swift.files import write_swift_files
from deploy.bundle.manifest import (
    FORMAT,
    VERSION,
    BlocksRecord,
    ClientScheduleRecord,
    FileRecord,
    GuidanceRecord,
    LoraRecord,
    Manifest,
    PictureRecord,
    PictureSize,
    RuleRecord,
    SamplingRecord,
    StudentRecord,
    TextRecord,
    TokenizerRecord,
)
from deploy.bundle.requirements import NAME, least_onnxruntime
from deploy.bundle.seal import record_file
from deploy.page.page import write_page
from exporters.layouts.spec import VAE_SCALE
from exporters.student.hub import called
from exporters.student.student import Student
from quantization.errors import printable


def write_small_files(plan: Plan, folder: Path) -> list[FileRecord]:
    """Write what is no graph: tokenizers, scheduler, licences, a page, the Swift client's files.

    Args:
        plan: what is built.
        folder: the bundle's.
    """
    paths = write_layout_files(plan.student, plan.options, plan.tokenizers, folder)
    if plan.has_page:
        paths += write_page(folder, plan.request.web_runtime)
    if plan.request.layout == "swift":
        paths += write_swift_files(plan, folder)
    return [record_file(folder, path) for path in paths]


def describe(plan: Plan, written: Sequence[Done], small: Sequence[FileRecord], fingerprint: str) -> Manifest:
    """The manifest.

    Args:
        plan: what was built.
        written: what was written of each graph, and measured.
        small: the other files.
        fingerprint: of the student.
    """
    files = [*(file for done in written for file in done.files), *small]
    onnx = plan.request.format == "onnx"
    schemes = (rule.scheme for rule in plan.profile.rules)
    return Manifest(
        format=FORMAT,
        version=VERSION,
        created_with={tool: metadata.version(tool) for tool in tools(plan.request.format)},
        student=_student(plan.student, fingerprint),
        tier=plan.request.tier,
        model_format=plan.request.format,
        compute_units=plan.compute_units,
        attention=None if onnx else plan.attention,
        layout=plan.request.layout,
        compute=plan.compute,
        precision=plan.precision,
        profile=tuple(
            RuleRecord(component=r.component, weights=r.weights, scheme=r.scheme.name, reason=r.reason)
            for r in plan.profile.rules
        ),
        kept=tuple(kept for done in written for kept in done.kept),
        calibration_prompts=0 if plan.calibration is None or plan.precision != "mixed" else len(plan.calibration.recipe.prompts),
        sampling=SamplingRecord(
            method=plan.sampling.method,
            sigmas=plan.sampling.sigmas,
            timesteps=plan.sampling.timesteps,
            guidance=GuidanceRecord(**asdict(plan.sampling.guidance)),
            combinations=plan.sampling.combinations,
            scales=plan.sampling.scales,
            upscale_mode=plan.sampling.upscale_mode,
        ),
        picture=_picture(plan),
        text=_text(plan),
        graphs=tuple(done.graph for done in written),
        notes=plan.notes,
        opset=plan.opset if onnx else None,
        # Core ML programs say themselves which system they need.
        requires={NAME: least_onnxruntime(plan.opset, plan.compute, schemes)} if onnx else {},
        client_schedule=_client_schedule(plan),
        blocks=_blocks(plan.student),
        files=tuple(sorted(files, key=lambda record: record.path)),
    )


def _client_schedule(plan: Plan) -> ClientScheduleRecord | None:
    client = plan.options.client
    if client is None:
        return None
    return ClientScheduleRecord(steps=client.steps, shift=client.shift, timesteps=client.timesteps, scales=client.scales)


def _blocks(student: Student) -> BlocksRecord:
    config = student.configs["transformer"]
    return BlocksRecord(num_layers=config["num_layers"], dual_attention_layers=tuple(config["dual_attention_layers"]))


def _student(student: Student, fingerprint: str) -> StudentRecord:
    return StudentRecord(
        name=printable(called(student.path)),
        fingerprint=fingerprint,
        licences=student.licences(),
        loras=tuple(LoraRecord(name=printable(one.name), sha256=one.sha256(), scale=one.scale) for one in student.loras),
    )


def _picture(plan: Plan) -> PictureRecord:
    config, vae = plan.student.configs["transformer"], plan.student.configs["vae"]
    return PictureRecord(
        height=plan.options.height,
        width=plan.options.width,
        dynamic=plan.options.dynamic,
        latent_channels=config["in_channels"],
        pixels_per_latent=VAE_SCALE,
        multiple_of=VAE_SCALE * config["patch_size"],
        scaling_factor=vae["scaling_factor"],
        shift_factor=vae["shift_factor"] or 0.0,
        largest=config["pos_embed_max_size"] * VAE_SCALE * config["patch_size"],
        other_sizes=tuple(PictureSize(height=height, width=width) for height, width in plan.options.other_sizes),
    )


def _text(plan: Plan) -> TextRecord:
    options = plan.options
    return TextRecord(
        tokenizers=tuple(
            TokenizerRecord(
                input=name,
                path=f"{folder}/tokenizer.json",
                max_length=options.max_sequence_length if name == "input_ids_3" else options.clip_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
            for name, folder, tokenizer in plan.tokenizers
        ),
        t5="kept" if options.keep_t5 else "dropped",
        max_sequence_length=options.max_sequence_length,
        joint_dim=plan.student.configs["transformer"]["joint_attention_dim"],
    )
