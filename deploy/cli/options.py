"""What the commands share: their options, where messages go, and what is said where a package is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console

from deploy.errors import Complaint, InputError
from deploy.tiers.read import OWN_TIERS, tier_data
from exporters.choices import (
    AttentionForm,
    Compute,
    ComputeUnits,
    FormatName,
    Layout,
    Parity,
    Runtime,
    Sampler,
    System,
    UpscaleMode,
)
from exporters.guidance import KEYS

if TYPE_CHECKING:
    from deploy.build.request import BuildRequest
    from exporters.student.weights.lora.source import Lora

# Progress and messages go to stderr, results to stdout; bars are drawn on terminals alone (deploy/cli/progress.py).
messages = Console(stderr=True, highlight=False, soft_wrap=True)
EXPORT_EXTRA = "pip install 'flash-deploy[export]'"
MAX_IMAGES = 10_000
COMPONENT_OPTIONS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
LISTS = ("sigmas", "sigmas_after_shift", "timesteps", "scales")
T = TypeVar("T")
SERVE_PORT = 8737  # one and the same: browsers keep what they downloaded by address, and of a bundle that is much

StudentArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDENT]",
        help="Folder in diffusers SD3 layout, a .safetensors file in one, or owner/name[@revision] in a hub's cache. "
        "Default: the built-in student.",
        show_default=False,
    ),
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder that `flash-deploy build` made.", show_default=False)
]
TierOption = Annotated[str, typer.Option(help="Device tier; `flash-deploy tiers` lists them.")]


def _use_tiers(file: Path | None) -> None:
    """Tiers of the user's own, here and in every process that is started."""
    if file is not None:
        os.environ[OWN_TIERS] = str(file.absolute())
        tier_data()  # what is wrong with it is told first


TiersOption = Annotated[
    Path | None,
    typer.Option(
        "--tiers",
        envvar=OWN_TIERS,
        callback=_use_tiers,
        is_eager=True,
        expose_value=False,
        show_default=False,
        help="Tiers of your own (TOML), beside those of this package or in their place.",
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help="Prompts, one a line. Default: the student's own, or prompts of all sorts.", show_default=False),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of noise and projections.")]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(help="Folder of `flash-deploy calibrate`: better codes from it; data-free without.", show_default=False),
]
HeightOption = Annotated[
    int | None,
    typer.Option(min=1, help="Picture height in pixels. Default: the student's, then the tier's.", show_default=False),
]
WidthOption = Annotated[
    int | None,
    typer.Option(min=1, help="Picture width in pixels. Default: the student's, then the tier's.", show_default=False),
]
SizeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WIDTHxHEIGHT",
        help="Picture size in pixels, in place of --height and --width; repeated: several in one bundle, the first by default.",
        show_default=False,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Denoising steps. Default: the student's, then the tier's.", show_default=False),
]
SigmasOption = Annotated[
    str | None,
    typer.Option(
        help="Noise levels before the scheduler's shift, one for each step, e.g. 1,0.75,0.5,0.25.",
        show_default=False,
    ),
]
SigmasAfterShiftOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Noise levels as they are, without a shift, e.g. 1,0.9454,0.7904,0.6022; a last 0 may be among them.",
        show_default=False,
    ),
]
TimestepsOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What the transformer is told at each step (0 to 1000), as diffusers' schedulers take it: noise levels that are "
        "not given beside it follow from it, shifted.",
        show_default=False,
    ),
]
ShiftOption = Annotated[
    float | None,
    typer.Option(min=0, help="Shift of noise levels, in place of the scheduler's.", show_default=False),
]
ScalesOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Sizes of the latents of each step, as shares of the last: they grow from step to step, e.g. 32,64,96,128 (SwD).",
        show_default=False,
    ),
]
UpscaleModeOption = Annotated[
    UpscaleMode | None, typer.Option(help="How they are enlarged between steps. Default: nearest.", show_default=False)
]
SamplerOption = Annotated[
    Sampler | None,
    typer.Option(
        help="euler; renoise for students trained so; dpmpp, DPM-Solver++ of second order. Default: what the student's scheduler "
        "says.",
        show_default=False,
    ),
]
GuidanceScaleOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Classifier-free guidance, counted from 1, which is none; above it every step takes twice as long. "
        "Default: the student's, else 1.",
        show_default=False,
    ),
]
NegativePromptOption = Annotated[
    str | None, typer.Option(help="What guidance goes away from. Default: the student's, else nothing.", show_default=False)
]
GuidanceIntervalOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Guide only steps whose noise level (0 to 1, after the shift) is from A to B. Default: all.",
        show_default=False,
    ),
]
SkipGuidanceLayersOption = Annotated[
    str | None,
    typer.Option(
        metavar="LAYERS",
        help="Skip-layer guidance: also go away from what the transformer predicts without these layers, e.g. 7,8,9 for "
        "SD3.5 Medium. Native layout.",
        show_default=False,
    ),
]
SkipLayerScaleOption = Annotated[
    float | None, typer.Option(help="Scale of skip-layer guidance. Default: 2.8, as in diffusers.", show_default=False)
]
SkipLayerStartOption = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of the steps after which it begins. Default: 0.01.", show_default=False),
]
SkipLayerStopOption = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of the steps at which it ends. Default: 0.2.", show_default=False),
]
KeepT5Option = Annotated[
    bool | None,
    typer.Option(
        "--keep-t5/--drop-t5",
        help="Keep the T5 text encoder, or put null tokens in its place. Default: the tier's.",
        show_default=False,
    ),
]
VaeBandsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="onnx: bands of rows in which the VAE is computed: less memory, the same picture. "
        "Default: as few as the tier's memory allows.",
        show_default=False,
    ),
]
VaeEncoderOption = Annotated[
    bool,
    typer.Option(
        "--vae-encoder",
        help="With the VAE's encoder: `generate --image` draws upon a picture (optimum layout: always).",
    ),
]
MaxSequenceLengthOption = Annotated[
    int | None,
    typer.Option(min=1, help="T5 tokens, or null tokens in their place. Default: the student's, then 256.", show_default=False),
]
FormatOption = Annotated[FormatName, typer.Option(help="Model format; coreml needs flash-deploy[coreml].")]
LayoutOption = Annotated[
    Layout,
    typer.Option(
        help="native: for this runtime. optimum: loads in ORTStableDiffusion3Pipeline. "
        "swift (coreml): for Apple's Swift StableDiffusion3Pipeline."
    ),
]
UnitsOption = Annotated[
    ComputeUnits | None,
    typer.Option(help="coreml: Neural Engine or GPU beside the CPU. Default: the tier's.", show_default=False),
]
StagesOption = Annotated[
    int | None,
    typer.Option(min=1, help="coreml: programs that the denoiser becomes. Default: the tier's.", show_default=False),
]
TargetOption = Annotated[
    System | None,
    typer.Option(
        case_sensitive=False,
        help="coreml: the oldest system that must run it (ios17: also macOS 14). Default: the tier's.",
        show_default=False,
    ),
]
AttentionOption = Annotated[
    AttentionForm | None,
    typer.Option(
        help="coreml: one operation for all heads, or one einsum for each. Default: what the compute units want.",
        show_default=False,
    ),
]
OpsetOption = Annotated[
    Literal["21", "23"] | None,
    typer.Option(help="onnx: 21 makes graphs for runtimes as old as onnxruntime 1.20. Default: 23.", show_default=False),
]
PrecisionOption = Annotated[
    Compute | None, typer.Option(help="Store all matrices alike. Default: the tier's profile.", show_default=False)
]
ProfileOption = Annotated[
    Path | None, typer.Option(help="Profile (TOML): how each weight is stored, in place of the tier's.", show_default=False)
]
ParityOption = Annotated[
    Parity,
    typer.Option(help="Measure graphs against diffusers; auto leaves out those that would take over 1 GiB of memory."),
]
VariantOption = Annotated[
    str | None,
    typer.Option(help="Variant of the weight files, e.g. fp16 for model.fp16.safetensors.", show_default=False),
]
IgnoreLoraOption = Annotated[
    bool,
    typer.Option("--ignore-lora", help="Do without a LoRA beside the student's weights; else a student that has one is refused."),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:SCALE]",
        help="A LoRA to merge into the student's weights, and how much of it (1); repeatable.",
        show_default=False,
    ),
]
TransformerOption = Annotated[
    Path | None,
    typer.Option(
        help="The student's transformer from elsewhere: a folder of its own, a pipeline's, or a single .safetensors file.",
        show_default=False,
    ),
]
VaeOption = Annotated[Path | None, typer.Option(help="Likewise its VAE, e.g. TAESD3's folder or file.", show_default=False)]
TextEncoderOption = Annotated[Path | None, typer.Option(help="Likewise its first text encoder (CLIP-L).", show_default=False)]
TextEncoder2Option = Annotated[
    Path | None, typer.Option("--text-encoder-2", help="Likewise the second (CLIP-G).", show_default=False)
]
TextEncoder3Option = Annotated[Path | None, typer.Option("--text-encoder-3", help="Likewise the third (T5).", show_default=False)]
RuntimeOption = Annotated[
    Runtime | None,
    typer.Option(
        help="What runs the graphs: onnxruntime or openvino (flash-deploy[openvino]) for ONNX, coreml (macOS) or evaluator "
        "(anywhere, slowly, to check) for Core ML. Default: the fastest that is installed.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Threads of one operator. Default: the runtime's choice.", show_default=False),
]


def build_request(given: Mapping[str, Any]) -> BuildRequest:
    """A build request of a command's options, by their names; options that it does not have are left out."""
    from dataclasses import fields

    from deploy.build.request import BuildRequest
    from exporters.student.student import BUILTIN_STUDENT

    names = {field.name for field in fields(BuildRequest)}
    request = {name: value for name, value in given.items() if name in names}
    request["student"] = given["student"] or BUILTIN_STUDENT
    request |= {name: parse_numbers(f"--{name.replace('_', '-')}", given.get(name)) for name in LISTS}
    request |= parse_guidance(given)
    request |= _sizes(given)
    request["lora"] = parse_loras(given["lora"])
    request["components"] = given_components(given)
    request["system"] = given.get("target")
    if given.get("opset") is not None:
        request["opset"] = int(given["opset"])
    return BuildRequest(**request)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of a size as it is written, width first.

    Raises:
        InputError: it is none.

    >>> parse_size("768x512")
    (512, 768)
    """
    if match := re.fullmatch(r"([1-9]\d{0,6})[xX]([1-9]\d{0,6})", text.strip(), re.ASCII):
        return int(match[2]), int(match[1])
    complaint = Complaint("--size", "is no size", "WIDTHxHEIGHT in pixels, like 768x512", repr(text))
    raise InputError("The options cannot be used.", [complaint])


def one_size(size: str | None, height: int | None, width: int | None) -> tuple[int | None, int | None]:
    """Height and width, said in one way or the other.

    Raises:
        InputError: they are said in both.
    """
    if size is None:
        return height, width
    if height is not None or width is not None:
        raise InputError(
            "The options cannot be used.", [Complaint("--size", "says what --height and --width say")], "leave one out"
        )
    return parse_size(size)


def _sizes(given: Mapping[str, Any]) -> dict[str, Any]:
    """The first of the sizes that are given is the picture's, the others can be drawn beside it."""
    sizes = given.get("size")
    if not sizes:
        return {}
    height, width = one_size(sizes[0], given.get("height"), given.get("width"))
    return {"height": height, "width": width, "other_sizes": tuple(map(parse_size, sizes[1:]))}


def parse_loras(given: Iterable[str] | None) -> tuple[Lora, ...]:
    """LoRAs as they are written on the command line.

    Raises:
        InputError: a scale is not finite, or there is no file.
    """
    if not given:  # the same where only the runtime is installed
        return ()
    from exporters.student.weights.lora.source import as_loras

    return as_loras(given)


def given_components(given: Mapping[str, Any]) -> dict[str, Path]:
    """The components that a command's options take from elsewhere."""
    return {name: given[name] for name in COMPONENT_OPTIONS if given.get(name) is not None}


def builtin_or(student: Path) -> Path:
    """The student's path, where ``builtin`` that is no path means the built-in one."""
    from exporters.student.student import BUILTIN_STUDENT

    return BUILTIN_STUDENT if str(student) == "builtin" and not student.exists() else student


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers of a list with commas.

    Raises:
        InputError: it is none.
    """
    return _parse_list(option, text, float, "1000,750,500,250" if option == "--timesteps" else "1,0.75,0.5,0.25")


def parse_guidance(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a command's options say of guidance, by its names, those that are lists as such.

    Raises:
        InputError: one that shall be a list is none.
    """
    return {key: given.get(key) for key in KEYS} | {
        "guidance_interval": _parse_list("--guidance-interval", given.get("guidance_interval"), float, "0.2,0.9"),
        "skip_guidance_layers": _parse_list("--skip-guidance-layers", given.get("skip_guidance_layers"), int, "7,8,9"),
    }


def _parse_list(option: str, text: str | None, kind: Callable[[str], T], example: str) -> tuple[T, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option} {text!r} is not a list of numbers.", remedy=f"write them with commas, e.g. {example}"
        ) from None


def tell_note(text: str) -> None:
    """Something that the user should know, in a line of its own."""
    messages.print(f"note: {text}", markup=False)


def need_export() -> None:
    """A plain word instead of an import error where only the runtime is installed.

    Raises:
        InputError: packages of the extra ``export`` are missing.
    """
    from benchmarks.extra import missing
    from exporters.quiet import quiet_libraries

    if absent := missing("torch", "diffusers", "transformers", "onnx_ir", "onnxscript"):
        raise InputError(f"This command needs packages that are not installed: {', '.join(absent)}.", remedy=EXPORT_EXTRA)
    quiet_libraries()
