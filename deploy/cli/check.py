"""The commands that say what is there, and whether it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import (
    BundleArgument,
    IgnoreLoraOption,
    LoraOption,
    TextEncoder2Option,
    TextEncoder3Option,
    TextEncoderOption,
    TiersOption,
    TransformerOption,
    VaeOption,
    VariantOption,
    builtin_or,
    given_components,
    messages,
    need_export,
    parse_loras,
)
from deploy.cli.progress import telling
from deploy.errors import CheckFailed, Complaint, InputError
from deploy.tiers.schema import Tier
from exporters.choices import ComputeUnits, FormatName
from quantization.errors import listed


def verify(
    ctx: typer.Context,
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
    lora: LoraOption = None,
    transformer: TransformerOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    text_encoder_2: TextEncoder2Option = None,
    text_encoder_3: TextEncoder3Option = None,
    own_tiers: TiersOption = None,
) -> None:
    """Check a bundle's files and what it computes.

    What it computes is measured where the student is given.
    """
    from deploy.build.verify import verify as verify_bundle

    components = given_components(ctx.params)
    of_student = {"--variant": variant is not None, "--ignore-lora": ignore_lora, "--lora": bool(lora)}
    of_student |= {f"--{name.replace('_', '-')}": True for name in components}
    for option, given in of_student.items():
        if given and student is None:
            raise InputError(f"{option} is the student's.", [Complaint(option, "no student is given", "--student", variant)])
    if student is not None:
        need_export()
        student = builtin_or(student)
    with telling(messages, "verifying") as tell:
        loras = parse_loras(lora)
        report = verify_bundle(bundle, student, variant, tell, ignore_lora=ignore_lora, lora=loras, components=components)
    typer.echo(f"files: {report.files} checked")
    for name, db in report.graph_db.items():
        typer.echo(f"{name}: {db:.1f} dB")
    for prompt, db in report.picture_db.items():
        typer.echo(f"picture {prompt!r}: PSNR {db:.1f} dB")
    if report.complaints:
        raise CheckFailed("\n".join(listed(report.complaints)))
    typer.echo("good")


def inspect(
    ctx: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDENT|BUNDLE|PICTURE]",
            help="A student, a bundle, or a PNG file of `generate`. Default: the built-in student.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
    lora: LoraOption = None,
    transformer: TransformerOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    text_encoder_2: TextEncoder2Option = None,
    text_encoder_3: TextEncoder3Option = None,
    own_tiers: TiersOption = None,
) -> None:
    """Say what is in a student, a bundle or a picture."""
    from deploy.bundle.inspect import inspect_path, is_picture, render

    components = given_components(ctx.params)
    if path is None or not ((path / "manifest.json").is_file() or is_picture(path)):
        need_export()
        from exporters.student.student import BUILTIN_STUDENT

        path = path or BUILTIN_STUDENT
    elif lora:
        complaint = Complaint("--lora", "a bundle's LoRAs were merged when it was built", "a student", str(path))
        raise InputError("A LoRA cannot be merged into a bundle.", [complaint], "build it again of its student, with --lora")
    elif components:
        option = f"--{next(iter(components)).replace('_', '-')}"
        complaint = Complaint(option, "a bundle's components were settled when it was built", "a student", str(path))
        raise InputError("A bundle's components cannot be others.", [complaint], f"build it again of its student, with {option}")
    content = inspect_path(path, variant, ignore_lora, parse_loras(lora), components)
    typer.echo(json.dumps(content, indent=2) if as_json else render(content))


def tiers(own_tiers: TiersOption = None) -> None:
    """List the device tiers."""
    from deploy.forecast.targets import check_places
    from deploy.tiers.profiles import default_profile
    from deploy.tiers.read import tier_data

    data = tier_data()
    check_places(data)
    for name, tier in data.tiers.items():
        t5 = "T5 kept" if tier.keep_t5 else "T5 dropped"
        limits = f"memory {tier.memory_bytes / 1e9:.1f} GB, download {tier.download_bytes / 1e9:.1f} GB"
        facts = ["/".join(tier.formats), f"{tier.resolution} px", f"{tier.steps} steps", t5, limits]
        typer.echo(f"{name}: {tier.description}")
        typer.echo(f"    {', '.join(facts)}")
        for form in tier.formats:
            stored = dict.fromkeys(rule.scheme.name for rule in default_profile(name, form).rules)
            typer.echo(f"    {form}: default profile {', '.join(stored)}")
            if form == "coreml" and tier.coreml is not None:
                for units in tier.coreml.schemes:
                    typer.echo(f"        {units}: can run {_told_schemes(tier, form, units)}")
            else:
                typer.echo(f"        can run {_told_schemes(tier, form)}")


def _told_schemes(tier: Tier, form: FormatName, units: ComputeUnits | None = None) -> str:
    """What is chosen from, and what a profile may ask for beside it."""
    from deploy.tiers.tier import legal_schemes, profile_schemes

    legal = legal_schemes(tier, form, units)
    more = profile_schemes(tier, form, units)[len(legal) :]
    return ", ".join(legal) + (f"; where a profile asks for them {', '.join(more)}" if more else "")
