"""The commands that make something: bundles, calibrations, profiles, students."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.cli.options import (
    AttentionOption,
    CalibrationOption,
    FormatOption,
    GuidanceIntervalOption,
    GuidanceScaleOption,
    HeightOption,
    IgnoreLoraOption,
    KeepT5Option,
    LayoutOption,
    LoraOption,
    MaxSequenceLengthOption,
    NegativePromptOption,
    OpsetOption,
    ParityOption,
    PrecisionOption,
    ProfileOption,
    PromptsOption,
    SamplerOption,
    ScalesOption,
    SeedOption,
    ShiftOption,
    SigmasAfterShiftOption,
    SigmasOption,
    SizeOption,
    SkipGuidanceLayersOption,
    SkipLayerScaleOption,
    SkipLayerStartOption,
    SkipLayerStopOption,
    StagesOption,
    StepsOption,
    StudentArgument,
    TargetOption,
    TextEncoder2Option,
    TextEncoder3Option,
    TextEncoderOption,
    TierOption,
    TiersOption,
    TimestepsOption,
    TransformerOption,
    UnitsOption,
    UpscaleModeOption,
    VaeBandsOption,
    VaeEncoderOption,
    VaeOption,
    VariantOption,
    WidthOption,
    build_request,
    builtin_or,
    given_components,
    messages,
    need_export,
    parse_loras,
    tell_note,
)
from deploy.cli.progress import telling


def build(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new bundle.", show_default=False)],
    student: StudentArgument = None,
    tier: TierOption = "desktop-cpu",
    format: FormatOption = "onnx",
    compute_units: UnitsOption = None,
    stages: StagesOption = None,
    target: TargetOption = None,
    attention: AttentionOption = None,
    opset: OpsetOption = None,
    layout: LayoutOption = "native",
    precision: PrecisionOption = None,
    profile: ProfileOption = None,
    calibration: CalibrationOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    size: SizeOption = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Let height and width change at run time (optimum layout: always).")
    ] = False,
    steps: StepsOption = None,
    sigmas: SigmasOption = None,
    sigmas_after_shift: SigmasAfterShiftOption = None,
    timesteps: TimestepsOption = None,
    shift: ShiftOption = None,
    sampler: SamplerOption = None,
    scales: ScalesOption = None,
    upscale_mode: UpscaleModeOption = None,
    guidance_scale: GuidanceScaleOption = None,
    negative_prompt: NegativePromptOption = None,
    guidance_interval: GuidanceIntervalOption = None,
    skip_guidance_layers: SkipGuidanceLayersOption = None,
    skip_layer_guidance_scale: SkipLayerScaleOption = None,
    skip_layer_guidance_start: SkipLayerStartOption = None,
    skip_layer_guidance_stop: SkipLayerStopOption = None,
    vae_bands: VaeBandsOption = None,
    vae_encoder: VaeEncoderOption = False,
    keep_t5: KeepT5Option = None,
    max_sequence_length: MaxSequenceLengthOption = None,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
    lora: LoraOption = None,
    transformer: TransformerOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    text_encoder_2: TextEncoder2Option = None,
    text_encoder_3: TextEncoder3Option = None,
    parity: ParityOption = "auto",
    save_profile: Annotated[
        Path | None,
        typer.Option(
            help="Also write the profile (TOML) of the bundle: the one asked for, or what fits the tier in its place.",
            show_default=False,
        ),
    ] = None,
    web_runtime: Annotated[
        Path | None,
        typer.Option(help="Folder of `flash-deploy web-runtime`, for the page of a browser bundle.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and print profile, sizes, memory and disk; trace and write nothing."),
    ] = False,
    own_tiers: TiersOption = None,
) -> None:
    """Build a bundle from a student for a device tier."""
    need_export()
    from deploy.build import build as build_bundle
    from deploy.bundle.inspect import inspect_bundle, render
    from deploy.cli.preview import preview
    from deploy.cli.progress import Bars
    from deploy.page.page import check_page, has_page
    from deploy.tune.profile_file import check_profile_file, write_fitting_profile

    request = build_request(ctx.params)
    if save_profile is not None:
        check_profile_file(save_profile, force, "--save-profile")
        write_fitting_profile(request, save_profile)
        messages.print(str(save_profile), markup=False)
    if dry_run:
        typer.echo(preview(request))
        return
    began = time.perf_counter()
    try:
        with Bars(messages) as bars:
            bundle = build_bundle(request, bars)
            bars.stage("done")
    except KeyboardInterrupt:
        messages.print("interrupted: nothing was sealed; the same command goes on where this one stopped")
        raise typer.Exit(130) from None
    typer.echo(render(inspect_bundle(bundle.folder), with_notes=False))  # they were told before the work
    if has_page(bundle.manifest) and (to_do := check_page(bundle.manifest)):
        tell_note(to_do)
    parts = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in bars.seconds.items())
    typer.echo(f"built in {time.perf_counter() - began:.1f} s: {parts}")


def calibrate(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new calibration.", show_default=False)],
    student: StudentArgument = None,
    tier: TierOption = "desktop-cpu",
    prompts: PromptsOption = None,
    count: Annotated[int, typer.Option(min=1, help="How many of the prompts are drawn.")] = 16,
    seed: SeedOption = 0,
    height: HeightOption = None,
    width: WidthOption = None,
    steps: StepsOption = None,
    sigmas: SigmasOption = None,
    sigmas_after_shift: SigmasAfterShiftOption = None,
    timesteps: TimestepsOption = None,
    shift: ShiftOption = None,
    sampler: SamplerOption = None,
    scales: ScalesOption = None,
    upscale_mode: UpscaleModeOption = None,
    guidance_scale: GuidanceScaleOption = None,
    negative_prompt: NegativePromptOption = None,
    guidance_interval: GuidanceIntervalOption = None,
    skip_guidance_layers: SkipGuidanceLayersOption = None,
    keep_t5: KeepT5Option = None,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
    lora: LoraOption = None,
    transformer: TransformerOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    text_encoder_2: TextEncoder2Option = None,
    text_encoder_3: TextEncoder3Option = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a calibration that is there.")] = False,
    own_tiers: TiersOption = None,
) -> None:
    """Measure how a student's weights shape its pictures.

    What an error of each weight does to them gives builds better codes, and is what `tune` searches by.
    """
    need_export()
    from deploy.tune.calibrate import calibrate_student

    with telling(messages, "calibrating") as tell:
        calibration = calibrate_student(build_request(ctx.params), prompts, count, seed, tell, tell_note)
    typer.echo(f"{output}: {len(calibration.weights())} weights, {len(calibration.recipe.prompts)} prompts")


def tune(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the new profile (TOML).", show_default=False)],
    student: StudentArgument = None,
    tier: TierOption = "desktop-cpu",
    format: FormatOption = "onnx",
    compute_units: UnitsOption = None,
    target: TargetOption = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Bytes of all weights. Default: what --min-db needs.", show_default=False)
    ] = None,
    min_db: Annotated[
        float | None,
        typer.Option(help="PSNR of pictures against the student's. Default: 40, unless bytes are given.", show_default=False),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            help="Upper limit on the predicted time of products, relative to fp32 on this tier (0.6: 40 % less).",
            show_default=False,
        ),
    ] = None,
    prompts: PromptsOption = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts that calibrate, and others that measure.")] = 16,
    seed: SeedOption = 0,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of `flash-deploy calibrate`, in place of an own calibration.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for the Pareto front (picture and CSV) and every weight's options.", show_default=False),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for findings on the way. Default: beside the profile, removed at the end.", show_default=False),
    ] = None,
    height: HeightOption = None,
    width: WidthOption = None,
    steps: StepsOption = None,
    sigmas: SigmasOption = None,
    sigmas_after_shift: SigmasAfterShiftOption = None,
    timesteps: TimestepsOption = None,
    shift: ShiftOption = None,
    sampler: SamplerOption = None,
    scales: ScalesOption = None,
    upscale_mode: UpscaleModeOption = None,
    guidance_scale: GuidanceScaleOption = None,
    negative_prompt: NegativePromptOption = None,
    guidance_interval: GuidanceIntervalOption = None,
    skip_guidance_layers: SkipGuidanceLayersOption = None,
    keep_t5: KeepT5Option = None,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
    lora: LoraOption = None,
    transformer: TransformerOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    text_encoder_2: TextEncoder2Option = None,
    text_encoder_3: TextEncoder3Option = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a profile that is there.")] = False,
    own_tiers: TiersOption = None,
) -> None:
    """Choose a profile for a tier: measure, search, draw.

    Sensitivities are measured, choices searched by them, and pictures drawn with what was chosen. The same command goes on where
    it was stopped.
    """
    need_export()
    from deploy.prompts import read_prompts
    from deploy.tune.choose import tune as tune_profile
    from deploy.tune.profile_file import check_profile_file, remove_work, write_profile
    from deploy.tune.report import check_report, table, write_report
    from deploy.tune.tuning import TuneRequest
    from quantization.files import WritingError

    check_profile_file(output, force)
    if report is not None:
        check_report(report)
    given = {name: value for name, value in ctx.params.items() if name not in ("calibration", "force")}
    request = TuneRequest(
        build=build_request(given),
        work=work or output.with_name(f".{output.name}.tuning"),
        max_bytes=max_bytes,
        min_db=min_db,
        max_time=max_time,
        prompts=() if prompts is None else read_prompts(prompts),
        count=count,
        calibration=calibration,
        seed=seed,
    )
    began = time.perf_counter()
    goes_on = work is not None or os.path.lexists(request.work)
    try:
        with telling(messages, "tuning") as tell:
            tuned = tune_profile(request, tell, tell_note)
        write_profile(tuned, request, output)
    except WritingError:  # on a full disk, gigabytes of findings in a hidden folder would be in the way
        if not goes_on:
            remove_work(request.work)
        raise
    typer.echo(table(tuned))
    for file in [output, *(write_report(tuned, report) if report is not None else [])]:
        typer.echo(str(file))
    if work is None:
        remove_work(request.work)
    messages.print(f"tuned in {time.perf_counter() - began:.1f} s")


def make_student(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new student.", show_default=False)],
    preset: Annotated[
        Literal["tiny", "mid", "full"],
        typer.Option(help="tiny: for tests. mid: SD3.5-Medium's width, 6 layers. full: SD3.5-Medium."),
    ] = "tiny",
    layers: Annotated[int | None, typer.Option(min=1, help="MMDiT blocks.", show_default=False)] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads.", show_default=False)] = None,
    head_dim: Annotated[int | None, typer.Option(min=4, help="Channels of a head, a multiple of 4.", show_default=False)] = None,
    dual_layers: Annotated[int | None, typer.Option(min=0, help="First blocks with dual attention.", show_default=False)] = None,
    qk_norm: Annotated[
        bool | None, typer.Option("--qk-norm/--no-qk-norm", help="RMS norm of queries and keys.", show_default=False)
    ] = None,
    t5: Annotated[
        bool | None, typer.Option("--t5/--no-t5", help="With or without the third text encoder.", show_default=False)
    ] = None,
    tiny_decoder: Annotated[
        bool, typer.Option("--tiny-decoder", help="A small VAE (AutoencoderTiny; mid and full: of TAESD3's shape).")
    ] = False,
    dtype: Annotated[
        Literal["fp16", "bf16", "fp32"] | None,
        typer.Option(help="How weights are stored. Default: the preset's.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
) -> None:
    """Make a student with random weights.

    It is there to measure memory, time and numerics on; its pictures are noise.
    """
    need_export()
    from deploy.cli.progress import Bars
    from distillation.random_students import make_student as make
    from distillation.random_students import preset_shape

    changes = {"layers": layers, "heads": heads, "head_dim": head_dim, "dual_layers": dual_layers, "qk_norm": qk_norm}
    shape = preset_shape(
        preset,
        t5=t5,
        tiny_decoder=tiny_decoder,
        **{name: value for name, value in (changes | {"dtype": dtype}).items() if value is not None},
    )
    with Bars(messages) as bars:
        make(shape, output, seed, bars.total("weights"))
    typer.echo(str(output))


def distill(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file: shapes-cpu, sd35-medium, …", show_default=False)],
    teacher: Annotated[
        Path | None,
        typer.Argument(help="Folder or single file of the model to go on from; none where the recipe makes one."),
    ] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; the same one goes on.", show_default=False)],
    lora: LoraOption = None,
    transformer: TransformerOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    text_encoder_2: TextEncoder2Option = None,
    text_encoder_3: TextEncoder3Option = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="A change of the recipe; repeatable.", show_default=False),
    ] = None,
    stop_after: Annotated[str, typer.Option(metavar="STAGE", help="The last stage to make.", show_default=False)] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda. Default: the best there is.", show_default=False)] = "",
    take_up: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A student that this recipe has handed out, or `builtin`: stages whose networks it holds are not made again.",
            show_default=False,
        ),
    ] = None,
    launch: Annotated[
        str,
        typer.Option(
            metavar="PREFIX",
            help="Run `PREFIX -m distillation …`, for example 'torchrun --nproc-per-node 8' or 'accelerate launch'.",
            show_default=False,
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory, operations and hours; load and write nothing.")
    ] = False,
) -> None:
    """Make a few-step student of a teacher, stage by stage.

    A run goes on by itself where it was stopped or cut off. Its students are folders like any other: build them, tune them.
    """
    need_export()
    from distillation.run.order import Order
    from distillation.run.start import begin

    taken_up = None if take_up is None else builtin_or(take_up)
    from_elsewhere = given_components(ctx.params)
    order = Order(recipe, teacher, output, tuple(change or ()), stop_after, device, parse_loras(lora), taken_up, from_elsewhere)
    if dry_run:
        from deploy.text import table
        from distillation.run.dry_run import remarks, rows
        from distillation.run.plan import plan

        estimate = plan(order)
        typer.echo("\n".join([*table(rows(estimate)), "", *remarks(estimate)]))
        return
    code = begin(order, launch)
    if code:
        raise typer.Exit(code)
