"""The commands that draw, here or in a browser."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import (
    MAX_IMAGES,
    SERVE_PORT,
    BundleArgument,
    GuidanceIntervalOption,
    RuntimeOption,
    SkipGuidanceLayersOption,
    SkipLayerScaleOption,
    SkipLayerStartOption,
    SkipLayerStopOption,
    ThreadsOption,
    TiersOption,
    messages,
    one_size,
    parse_guidance,
    tell_note,
)
from deploy.errors import Complaint, InputError
from deploy.prompts import read_prompts

STANDARD = "-"


def generate(
    ctx: typer.Context,
    bundle: BundleArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="What to draw; - reads it from standard input.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Draw each of these prompts, one a line, in PROMPT's place.", show_default=False)
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Picture (.png, .jpg, .webp) or array (.npy: [images, height, width, 3], float in [0, 1]); - writes one PNG to "
            "standard output.",
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
            help="How many pictures of each prompt; several are image-0.png, image-1.png, ... Default: 1, or one a latent.",
            show_default=False,
        ),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(
            min=1, help="Picture height in pixels, of a bundle with a dynamic size or with several.", show_default=False
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(min=1, help="Picture width in pixels, of a bundle with a dynamic size or with several.", show_default=False),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Both in one, in place of --height and --width.", show_default=False),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            help="Draw upon this picture, of a bundle with the VAE's encoder; resized to the bundle's size.", show_default=False
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of the schedule's steps, the share that is made upon --image; 1 leaves nothing of it. Default: 0.6.",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="What of --image is drawn anew (white) and what stays (black).", show_default=False),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Classifier-free guidance, counted from 1, which is none; above it every step takes twice as long. "
            "Default: the bundle's.",
            show_default=False,
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance goes away from. Default: the bundle's.", show_default=False)
    ] = None,
    guidance_interval: GuidanceIntervalOption = None,
    skip_guidance_layers: SkipGuidanceLayersOption = None,
    skip_layer_guidance_scale: SkipLayerScaleOption = None,
    skip_layer_guidance_start: SkipLayerStartOption = None,
    skip_layer_guidance_stop: SkipLayerStopOption = None,
    parameters: Annotated[
        bool, typer.Option(help="Write what a picture was drawn with into its PNG file; `inspect` reads it.")
    ] = True,
    previews: Annotated[
        bool,
        typer.Option(
            "--previews",
            help="Also write what each picture would be after each step, beside it: NAME-step-1.png, ... Takes a run of the VAE "
            "a step.",
        ),
    ] = False,
    runtime: RuntimeOption = None,
    provider: Annotated[
        str,
        typer.Option(help="onnxruntime execution provider: cpu, cuda, tensorrt, directml, coreml, openvino, webgpu."),
    ] = "cpu",
    threads: ThreadsOption = None,
    own_tiers: TiersOption = None,
) -> None:
    """Draw pictures of a prompt."""
    from deploy.bundle.told import told_of, told_upon
    from deploy.cli.progress import Steps
    from deploy.runtime.arguments import guidance_of, picture_size
    from deploy.runtime.eight_bit import to_8_bit
    from deploy.runtime.pictures import Previews, encoded_picture, load_image, load_latents, save_pictures, squeezed
    from deploy.runtime.pipeline import Pipeline

    asked = _asked(prompt, prompts)
    noise = None if latents is None else load_latents(latents)
    count = len(asked) * (num_images or 1) if noise is None else len(noise)
    _check_output(output, count)
    if noise is not None and num_images is not None and num_images * len(asked) != len(noise):
        complaint = Complaint("--num-images", "disagrees with --latents", f"{len(noise) / len(asked):g}", str(num_images))
        raise InputError("The pictures cannot be drawn.", [complaint], "leave --num-images out: each latent makes one picture")
    after_steps = Previews(output, count) if previews else None
    guidance, (height, width) = parse_guidance(ctx.params), one_size(size, height, width)
    upon, anew = (None if file is None else load_image(file, f"--{name}") for name, file in (("image", image), ("mask", mask)))
    pipeline = Pipeline(bundle, provider, threads, runtime=runtime)
    for what, text in (*(("prompt", one) for one in asked), ("negative prompt", negative_prompt or "")):
        for name, cut in pipeline.tokens_cut(text).items():
            tell_note(f"the {what} is too long for {name}: its last {cut} tokens are not seen")
    if upon is not None and (note := squeezed(upon, picture_size(pipeline.manifest, height, width))):
        tell_note(note)
    began = time.perf_counter()
    with Steps(messages) as steps:
        pictures = pipeline.generate(
            asked,
            seed=seed,
            num_images=num_images or 1,
            latents=noise,
            height=height,
            width=width,
            image=upon,
            strength=strength,
            mask=anew,
            progress=steps,
            noise="torch" if torch_noise else "numpy",
            previews=after_steps,
            **guidance,
        )
    guided = list(zip(asked, guidance_of(pipeline.manifest, guidance, len(asked)), strict=True))
    circumstances: dict[str, object] = {
        "seed": seed if noise is None else None,
        "noise": "torch" if torch_noise else "numpy",
        **({} if image is None else told_upon(image, strength, mask)),
    }
    told = told_of(pipeline.manifest, guided, pictures.shape, runtime=pipeline.runtime, **circumstances) if parameters else []
    if str(output) == STANDARD:
        sys.stdout.buffer.write(encoded_picture(to_8_bit(pictures)[0], ".png", told[0] if told else None))
        sys.stdout.buffer.flush()
    else:
        for file in save_pictures(pictures, output, told):
            typer.echo(str(file))
    messages.print(f"{len(pictures)} picture(s) in {time.perf_counter() - began:.2f} s ({pipeline.runtime})")


def _asked(prompt: str | None, prompts: Path | None) -> tuple[str, ...]:
    """What is to be drawn.

    Raises:
        InputError: nothing is, or it is said twice.
    """
    if (prompt is None) == (prompts is None):
        what = "are given both" if prompt is not None else "are missing"
        raise InputError("It is not clear what to draw.", [Complaint("PROMPT and --prompts", what, "one of them")])
    if prompts is not None:
        return read_prompts(prompts)
    if prompt != STANDARD:
        return (prompt or "",)
    try:
        return (sys.stdin.buffer.read().decode("utf-8").strip("\r\n"),)
    except UnicodeDecodeError as error:
        raise InputError("The prompt cannot be read.", [Complaint("standard input", str(error))], "give it in UTF-8") from error


def _check_output(output: Path, count: int) -> None:
    from deploy.runtime.pictures import check_output

    if str(output) != STANDARD:
        check_output(output, count)
    elif count > 1:
        complaint = Complaint("-o -", "standard output takes one picture", "1", str(count))
        raise InputError("The pictures cannot be written.", [complaint], "give a file")


def web_runtime(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new web runtime.", show_default=False)],
) -> None:
    """Fetch with npm what browser bundles draw with.

    That is onnxruntime-web and the tokenizers library, in pinned versions.
    """
    from deploy.page.vendor import fetch_web_runtime, pinned

    with messages.status("npm ci"):
        fetch_web_runtime(output)
    typer.echo(f"{output}: {', '.join(f'{name} {version}' for name, version in pinned().items())}")


def serve(
    bundle: BundleArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes any that is free.")] = SERVE_PORT,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the default browser.")] = False,
) -> None:
    """Serve a browser bundle's page to this machine.

    It is served until Ctrl-C.
    """
    import webbrowser

    from deploy.bundle.folder import open_bundle
    from deploy.page.page import check_page
    from deploy.page.serve import serve as serve_bundle

    opened = open_bundle(bundle)
    if to_do := check_page(opened.manifest):
        tell_note(to_do)

    def ready(url: str) -> None:
        typer.echo(url)
        messages.print("Ctrl-C stops the server")
        if open_page:
            webbrowser.open(url)

    serve_bundle(opened, port, ready)
