"""What the commands share: their options, where messages go, and what is said where a package is missing."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from deploy.errors import InputError

# Progress and messages go to stderr, results to stdout; neither is drawn where there is no terminal.
messages = Console(stderr=True, highlight=False, soft_wrap=True)
EXPORT_EXTRA = "pip install 'flash-deploy[export]'"


class Layout(StrEnum):
    """Layouts of a bundle."""

    native = "native"
    optimum = "optimum"
    swift = "swift"


class Precision(StrEnum):
    """How matrices are stored."""

    fp32 = "fp32"
    fp16 = "fp16"


class Format(StrEnum):
    """Model formats."""

    onnx = "onnx"
    coreml = "coreml"


class Units(StrEnum):
    """What Core ML programs are made for."""

    cpu_and_ne = "cpu-and-ne"
    cpu_and_gpu = "cpu-and-gpu"


class System(StrEnum):
    """Systems that Core ML programs are made for."""

    ios17 = "ios17"
    ios18 = "ios18"

    @property
    def coreml(self) -> Literal["iOS17", "iOS18"]:
        """As Core ML's tools call it."""
        return "iOS17" if self is System.ios17 else "iOS18"


class Attention(StrEnum):
    """Forms of attention in Core ML programs."""

    fused = "fused"
    split_einsum = "split-einsum"


class Sampler(StrEnum):
    """How few-step samplers go on."""

    euler = "euler"
    renoise = "renoise"


MAX_IMAGES = 10_000
SERVE_PORT = 8737  # one and the same: browsers keep what they downloaded by address, and of a bundle that is much


class RuntimeName(StrEnum):
    """What runs the graphs."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"
    coreml = "coreml"
    evaluator = "evaluator"


class Parity(StrEnum):
    """When graphs are measured in a build."""

    auto = "auto"
    always = "always"
    never = "never"


class OpsetName(StrEnum):
    """Opsets of ONNX graphs."""

    twenty_one = "21"
    twenty_three = "23"

    @property
    def number(self) -> Literal[21, 23]:
        """As ONNX counts them."""
        return 21 if self is OpsetName.twenty_one else 23


class Preset(StrEnum):
    """Sizes of random students."""

    tiny = "tiny"
    mid = "mid"
    full = "full"


class Dtype(StrEnum):
    """Types that weights are stored in."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


StudentArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDENT]",
        help="Folder in diffusers SD3 layout, or an original .safetensors file in one. Default: the built-in student.",
        show_default=False,
    ),
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder that `flash-deploy build` made.", show_default=False)
]
TierOption = Annotated[str, typer.Option(help="Device tier; `flash-deploy tiers` lists them.")]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help="Prompts, one a line. Default: the student's own, or prompts of all sorts.", show_default=False),
]
HeightOption = Annotated[
    int | None,
    typer.Option(min=1, help="Picture height in pixels. Default: the student's, then the tier's.", show_default=False),
]
WidthOption = Annotated[
    int | None,
    typer.Option(min=1, help="Picture width in pixels. Default: the student's, then the tier's.", show_default=False),
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
KeepT5Option = Annotated[
    bool | None,
    typer.Option(
        "--keep-t5/--drop-t5",
        help="Keep the T5 text encoder, or put null tokens in its place. Default: the tier's.",
        show_default=False,
    ),
]
FormatOption = Annotated[Format, typer.Option(help="Model format; coreml needs flash-deploy[coreml].")]
UnitsOption = Annotated[
    Units | None,
    typer.Option(help="coreml: Neural Engine or GPU beside the CPU. Default: the tier's.", show_default=False),
]
TargetOption = Annotated[
    System | None,
    typer.Option(help="coreml: oldest system that shall run it (ios17: also macOS 14). Default: the tier's.", show_default=False),
]
VariantOption = Annotated[
    str | None,
    typer.Option(help="Variant of the weight files, e.g. fp16 for model.fp16.safetensors.", show_default=False),
]
IgnoreLoraOption = Annotated[
    bool,
    typer.Option("--ignore-lora", help="Do without a LoRA beside the student's weights; else a student that has one is refused."),
]


def builtin_or(student: Path) -> Path:
    """The built-in student where its name is given, and no such file is there."""
    from exporters.student.student import BUILTIN_STUDENT

    return BUILTIN_STUDENT if str(student) == "builtin" and not student.exists() else student


def parse_sigmas(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--sigmas {text!r} is not a list of numbers.", remedy="write them with commas, e.g. 1,0.75,0.5,0.25"
        ) from None


def tell_note(text: str) -> None:
    """Something that the user should know, in a line of its own."""
    messages.print(f"note: {text}", markup=False)


def need_export() -> None:
    """A plain word instead of an import error where only the runtime is installed."""
    from importlib.util import find_spec

    if missing := [name for name in ("torch", "diffusers", "transformers", "onnx_ir", "onnxscript") if find_spec(name) is None]:
        raise InputError(f"This command needs packages that are not installed: {', '.join(missing)}.", remedy=EXPORT_EXTRA)
    # Set before their first import: they log advice (an image processor without torchvision) that is not for this user.
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
