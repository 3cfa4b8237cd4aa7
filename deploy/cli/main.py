"""The command line: thin over the library. Exit 0 done, 1 a check failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.card import card
from deploy.cli.measure import bench, compare, predict
from deploy.cli.options import (
    MAX_IMAGES,
    SERVE_PORT,
    Attention,
    BundleArgument,
    Dtype,
    Format,
    FormatOption,
    HeightOption,
    IgnoreLoraOption,
    KeepT5Option,
    Layout,
    OpsetName,
    Parity,
    Precision,
    Preset,
    PromptsOption,
    RuntimeName,
    Sampler,
    SigmasOption,
    StepsOption,
    StudentArgument,
    TargetOption,
    TierOption,
    UnitsOption,
    VariantOption,
    WidthOption,
    builtin_or,
    messages,
    need_export,
    parse_sigmas,
    tell_note,
)
from deploy.errors import CheckFailed, Complaint, InputError
from deploy.interrupts import interruptible
from quantization.errors import listed

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Few-step text-to-image students to on-device bundles: build, verify, run.",
)


@app.command()
def build(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new bundle.", show_default=False)],
    student: StudentArgument = None,
    tier: TierOption = "desktop-cpu",
    format: FormatOption = Format.onnx,  # noqa: A002
    compute_units: UnitsOption = None,
    stages: Annotated[
        int | None,
        typer.Option(min=1, help="coreml: programs that the denoiser becomes. Default: the tier's.", show_default=False),
    ] = None,
    target: TargetOption = None,
    attention: Annotated[
        Attention | None,
        typer.Option(
            help="coreml: one operation for all heads, or one einsum for each. Default: what the compute units want.",
            show_default=False,
        ),
    ] = None,
    opset: Annotated[
        OpsetName | None,
        typer.Option(help="onnx: 21 makes graphs for runtimes as old as onnxruntime 1.20. Default: 23.", show_default=False),
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option(
            help="native: for this runtime. optimum: loads in ORTStableDiffusion3Pipeline. "
            "swift (coreml): for Apple's Swift StableDiffusion3Pipeline."
        ),
    ] = Layout.native,
    precision: Annotated[
        Precision | None, typer.Option(help="Store all matrices alike. Default: the tier's profile.", show_default=False)
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile (TOML): how each weight is stored, in place of the tier's.", show_default=False)
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of `flash-deploy calibrate`: better codes from it; data-free without.", show_default=False),
    ] = None,
    height: HeightOption = None,
    width: WidthOption = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Let height and width change at run time (optimum layout: always).")
    ] = False,
    steps: StepsOption = None,
    sigmas: SigmasOption = None,
    sampler: Annotated[
        Sampler | None,
        typer.Option(
            help="euler, or renoise for students trained so. Default: what the student's scheduler says.",
            show_default=False,
        ),
    ] = None,
    force_schedule: Annotated[
        bool,
        typer.Option(
            "--force-schedule",
            help="swift: build also where the client's nearest schedule draws pictures under 50 dB PSNR of the student's own.",
        ),
    ] = False,
    keep_t5: KeepT5Option = None,
    max_sequence_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="T5 tokens, or null tokens in their place. Default: the student's, then 256.",
            show_default=False,
        ),
    ] = None,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
    parity: Annotated[
        Parity,
        typer.Option(help="Measure graphs against diffusers; auto leaves out those that would take over 1 GiB of memory."),
    ] = Parity.auto,
    web_runtime: Annotated[
        Path | None,
        typer.Option(help="Folder of `flash-deploy web-runtime`, for the page of a browser bundle.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Build a bundle from a student for a device tier."""
    need_export()
    from deploy.build.request import BuildRequest
    from deploy.build.run import build as build_bundle
    from deploy.cli.progress import Bars
    from deploy.page.page import check_page
    from deploy.tiers.tier import find_tier
    from exporters.student.student import BUILTIN_STUDENT

    request = BuildRequest(
        output=output,
        student=student or BUILTIN_STUDENT,
        tier=tier,
        format=format.value,
        compute_units=None if compute_units is None else compute_units.value,
        stages=stages,
        target=None if target is None else target.coreml,
        attention=None if attention is None else attention.value,
        opset=None if opset is None else opset.number,
        layout=layout.value,
        precision=None if precision is None else precision.value,
        profile=profile,
        calibration=calibration,
        height=height,
        width=width,
        dynamic=dynamic,
        steps=steps,
        sigmas=parse_sigmas(sigmas),
        sampler=None if sampler is None else sampler.value,
        force_schedule=force_schedule,
        keep_t5=keep_t5,
        max_sequence_length=max_sequence_length,
        variant=variant,
        ignore_lora=ignore_lora,
        parity=parity.value,
        web_runtime=web_runtime,
        force=force,
    )
    began = time.perf_counter()
    try:
        with Bars(messages) as bars:
            bundle = build_bundle(request, bars)
            bars.stage("done")
    except KeyboardInterrupt:
        messages.print("interrupted: nothing was sealed; the same command goes on where this one stopped")
        raise typer.Exit(130) from None
    from deploy.bundle.inspect import inspect_bundle, render

    typer.echo(render(inspect_bundle(bundle.folder)))
    if find_tier(tier).page and layout == Layout.native and (to_do := check_page(bundle.manifest)):
        messages.print(f"note: {to_do}", markup=False)
    parts = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in bars.seconds.items())
    typer.echo(f"built in {time.perf_counter() - began:.1f} s: {parts}")


@app.command()
def calibrate(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new calibration.", show_default=False)],
    student: StudentArgument = None,
    tier: TierOption = "desktop-cpu",
    prompts: PromptsOption = None,
    count: Annotated[int, typer.Option(min=1, help="How many of the prompts are drawn.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and projections.")] = 0,
    height: HeightOption = None,
    width: WidthOption = None,
    steps: StepsOption = None,
    sigmas: SigmasOption = None,
    keep_t5: KeepT5Option = None,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a calibration that is there.")] = False,
) -> None:
    """Measure what errors of a student's weights do to its pictures, for better codes in builds and for tuning."""
    need_export()
    from deploy.build.request import BuildRequest
    from deploy.tune.calibrate import calibrate_student
    from exporters.student.student import BUILTIN_STUDENT

    request = BuildRequest(
        output=output,
        student=student or BUILTIN_STUDENT,
        tier=tier,
        height=height,
        width=width,
        steps=steps,
        sigmas=parse_sigmas(sigmas),
        keep_t5=keep_t5,
        variant=variant,
        ignore_lora=ignore_lora,
        force=force,
    )
    with messages.status("calibrating") as status:
        found = calibrate_student(request, prompts, count, seed, status.update, tell_note)
    typer.echo(f"{output}: {len(found.weights())} weights, {len(found.recipe.prompts)} prompts")


@app.command()
def tune(
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the new profile (TOML).", show_default=False)],
    student: StudentArgument = None,
    tier: TierOption = "desktop-cpu",
    format: FormatOption = Format.onnx,  # noqa: A002
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
            help="Time of products over their time in floating point, both foretold for the tier, e.g. 0.6.", show_default=False
        ),
    ] = None,
    prompts: PromptsOption = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts that calibrate, and others that measure.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and projections.")] = 0,
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
    keep_t5: KeepT5Option = None,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a profile that is there.")] = False,
) -> None:
    """Choose a profile for a tier: measure sensitivities, search, and draw with what was found."""
    need_export()
    from deploy.build.request import BuildRequest
    from deploy.prompts import read_prompts
    from deploy.tune.report import check_report, table, write_report
    from deploy.tune.tuning import TuneRequest, check_profile_file, remove_work, write_profile
    from deploy.tune.tuning import tune as tune_profile
    from exporters.student.student import BUILTIN_STUDENT
    from quantization.files import WritingError

    check_profile_file(output, force)
    if report is not None:
        check_report(report)
    build_request = BuildRequest(
        output=output,
        student=student or BUILTIN_STUDENT,
        tier=tier,
        format=format.value,
        compute_units=None if compute_units is None else compute_units.value,
        target=None if target is None else target.coreml,
        height=height,
        width=width,
        steps=steps,
        sigmas=parse_sigmas(sigmas),
        keep_t5=keep_t5,
        variant=variant,
        ignore_lora=ignore_lora,
    )
    request = TuneRequest(
        build=build_request,
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
        with messages.status("tuning") as status:
            tuned = tune_profile(request, status.update, tell_note)
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


@app.command()
def generate(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Picture (.png, .jpg, .webp) or array (.npy: [images, height, width, 3], float in [0, 1]).",
        ),
    ] = Path("image.png"),
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of the noise, which is numpy's; the same seed is another picture in torch and diffusers."),
    ] = 0,
    torch_noise: Annotated[
        bool,
        typer.Option(
            "--torch-noise",
            help="Draw the noise that torch's CPU generator draws for the seed, as diffusers does (fp32; picture i: seed + i).",
        ),
    ] = False,
    latents: Annotated[
        Path | None,
        typer.Option(help="Initial noise in its place: .npy, [images, 16, height/8, width/8].", show_default=False),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_IMAGES,
            help="How many pictures; with a picture file, image-0.png, image-1.png, ... Default: 1, or one for each latent.",
            show_default=False,
        ),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(min=1, help="Picture height in pixels, of a bundle with a dynamic size.", show_default=False),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(min=1, help="Picture width in pixels, of a bundle with a dynamic size.", show_default=False),
    ] = None,
    runtime: Annotated[
        RuntimeName | None,
        typer.Option(
            help="What runs the graphs: onnxruntime or openvino (flash-deploy[openvino]) for ONNX, coreml (macOS) or evaluator "
            "(anywhere, slowly, to check) for Core ML. Default: the fastest that is installed.",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        str,
        typer.Option(help="onnxruntime execution provider: cpu, cuda, tensorrt, directml, coreml, openvino, webgpu."),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Threads of one operator. Default: the runtime's choice.", show_default=False),
    ] = None,
) -> None:
    """Draw pictures of a prompt."""
    from deploy.cli.progress import Steps
    from deploy.runtime.pictures import check_output, load_latents, save_pictures
    from deploy.runtime.pipeline import Pipeline

    noise = None if latents is None else load_latents(latents)
    check_output(output, num_images or (1 if noise is None else len(noise)))
    if noise is not None and num_images not in (None, len(noise)):
        complaint = Complaint("--num-images", "disagrees with --latents", str(len(noise)), str(num_images))
        raise InputError("The pictures cannot be drawn.", [complaint], "leave --num-images out: each latent makes one picture")
    pipeline = Pipeline(bundle, provider, threads, runtime=None if runtime is None else runtime.value)
    for name, cut in pipeline.tokens_cut(prompt).items():
        messages.print(f"note: the prompt is too long for {name}: its last {cut} tokens are not seen")
    began = time.perf_counter()
    with Steps(messages) as steps:
        pictures = pipeline.generate(
            prompt, seed, num_images or 1, noise, height, width, progress=steps, noise="torch" if torch_noise else "numpy"
        )
    for file in save_pictures(pictures, output):
        typer.echo(str(file))
    messages.print(f"{len(pictures)} picture(s) in {time.perf_counter() - began:.2f} s ({pipeline.runtime})")


@app.command()
def verify(
    bundle: BundleArgument,
    student: Annotated[
        Path | None,
        typer.Option(
            help="Also measure graphs and pictures against this student in diffusers; 'builtin' is the built-in one.",
            show_default=False,
        ),
    ] = None,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
) -> None:
    """Check a bundle's files and, given the student, what it computes."""
    from deploy.build.verify import verify as verify_bundle

    for option, given in (("--variant", variant is not None), ("--ignore-lora", ignore_lora)):
        if given and student is None:
            raise InputError(f"{option} is the student's.", [Complaint(option, "no student is given", "--student", variant)])
    if student is not None:
        need_export()
        student = builtin_or(student)
    with messages.status("verifying") as status:
        report = verify_bundle(bundle, student, variant, status.update, ignore_lora=ignore_lora)
    typer.echo(f"files: {report.files} checked")
    for name, db in report.graph_db.items():
        typer.echo(f"{name}: {db:.1f} dB")
    for prompt, db in report.picture_db.items():
        typer.echo(f"picture {prompt!r}: PSNR {db:.1f} dB")
    if report.complaints:
        raise CheckFailed("\n".join(listed(report.complaints)))
    typer.echo("good")


for _command in (bench, compare, predict, card):
    app.command()(_command)


@app.command()
def inspect(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDENT|BUNDLE]", help="A student or a bundle. Default: the built-in student.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
) -> None:
    """Say what is in a student or a bundle."""
    from deploy.bundle.inspect import inspect_path, render

    if path is None or not (path / "manifest.json").is_file():
        need_export()
        from exporters.student.student import BUILTIN_STUDENT

        path = path or BUILTIN_STUDENT
    content = inspect_path(path, variant, ignore_lora)
    typer.echo(json.dumps(content, indent=2) if as_json else render(content))


@app.command("web-runtime")
def web_runtime(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new web runtime.", show_default=False)],
) -> None:
    """Fetch with npm what browser bundles draw with: onnxruntime-web and the tokenizers library."""
    from deploy.page.vendor import fetch_web_runtime, pinned

    with messages.status("npm ci"):
        fetch_web_runtime(output)
    typer.echo(f"{output}: {', '.join(f'{name} {version}' for name, version in pinned().items())}")


@app.command()
def serve(
    bundle: BundleArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes any that is free.")] = SERVE_PORT,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the default browser.")] = False,
) -> None:
    """Serve a browser bundle's page to this machine, until Ctrl-C."""
    import webbrowser

    from deploy.bundle.folder import open_bundle
    from deploy.page.page import check_page
    from deploy.page.serve import serve as serve_bundle

    opened = open_bundle(bundle)
    if to_do := check_page(opened.manifest):
        messages.print(f"note: {to_do}", markup=False)

    def ready(url: str) -> None:
        typer.echo(url)
        messages.print("Ctrl-C stops the server")
        if open_page:
            webbrowser.open(url)

    serve_bundle(opened, port, ready)


@app.command()
def tiers() -> None:
    """List the device tiers."""
    from deploy.tiers.tier import all_tiers, default_profile

    for name, tier in all_tiers().items():
        t5 = "T5 kept" if tier.keep_t5 else "T5 dropped"
        budgets = f"memory {tier.memory_bytes / 1e9:.1f} GB, download {tier.download_bytes / 1e9:.1f} GB"
        facts = ["/".join(tier.formats), f"{tier.resolution} px", f"{tier.steps} steps", t5, budgets]
        stored = dict.fromkeys(rule.scheme.name for rule in default_profile(name).rules)
        typer.echo(f"{name}: {tier.description}")
        typer.echo(f"    {', '.join(facts)}")
        typer.echo(f"    default profile: {', '.join(stored)}; can run {', '.join(tier.schemes)}")


@app.command("make-student")
def make_student(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new student.", show_default=False)],
    preset: Annotated[
        Preset, typer.Option(help="tiny: for tests. mid: SD3.5-Medium's width, 6 layers. full: SD3.5-Medium.")
    ] = Preset.tiny,
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
    dtype: Annotated[
        Dtype | None, typer.Option(help="How weights are stored. Default: the preset's.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
) -> None:
    """Make a student with random weights, to measure memory, time and numerics on."""
    need_export()
    from dataclasses import replace

    from deploy.cli.progress import Bars
    from distillation.random_students import PRESETS
    from distillation.random_students import make_student as make

    shape = PRESETS[preset.value]
    changes: dict[str, Any] = {
        "layers": layers,
        "heads": heads,
        "head_dim": head_dim,
        "dual_layers": dual_layers,
        "qk_norm": qk_norm,
    }
    shape = replace(shape, **{key: value for key, value in changes.items() if value is not None})
    if t5 is not None:
        shape = replace(shape, t5=(shape.t5 or PRESETS["full" if preset == Preset.mid else preset.value].t5) if t5 else None)
    if dtype is not None:
        shape = replace(shape, dtype=dtype.value)
    if dual_layers is not None and dual_layers > shape.layers:
        complaint = Complaint("--dual-layers", "more than there are", f"at most {shape.layers} layers", str(dual_layers))
        raise InputError("The student cannot be made.", [complaint])
    shape = replace(shape, dual_layers=min(shape.dual_layers, shape.layers))
    with Bars(messages) as bars:
        make(shape, output, seed, bars.total("weights"))
    typer.echo(str(output))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flash-deploy {metadata.version('flash-deploy')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: turns errors into messages and exit codes (typer itself exits with 130 when interrupted)."""
    try:
        with interruptible():
            app()
    except KeyboardInterrupt:
        sys.exit(130)
    except InputError as error:
        messages.print(f"error: {error}", markup=False)
        sys.exit(2)
    except CheckFailed as error:
        messages.print(f"failed:\n{error}", markup=False)
        sys.exit(1)
    except OSError as error:  # of a path that was given: a name too long, a folder that may not be entered; or of a full disk
        if error.filename is None and error.errno not in FULL:
            raise
        where = "output" if error.filename is None else os.fsdecode(error.filename)
        messages.print(f"error: {Complaint(where, error.strerror or type(error).__name__)}", markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
