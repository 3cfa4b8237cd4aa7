"""The command that writes a bundle's page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import BundleArgument, ThreadsOption, TiersOption, messages
from deploy.errors import Complaint, InputError
from exporters.choices import Runtime

MAX_PICTURES = 100


def card(
    bundle: BundleArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File of the page; its pictures go to card/ beside it. Default: README.md in the bundle, or BUNDLE.card.md "
            "beside a bundle that has a README.md of its own.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to draw (repeatable). Default: prompts of all sorts.", show_default=False),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="In their place: a file, one prompt a line.", show_default=False)] = None,
    pictures: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_PICTURES,
            help="How many of the prompts are drawn; 0 leaves pictures out. Default: 4, or every --prompt.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture; the next has the next.")] = 0,
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            help="What the student was made from, as the hub names it: ORGANISATION/NAME (repeatable).", show_default=False
        ),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", help="Licence as the hub names it. Default: what the bundle's texts say.", show_default=False),
    ] = None,
    runtime: Annotated[
        Runtime | None,
        typer.Option(help="What draws the pictures. Default: the fastest that is installed.", show_default=False),
    ] = None,
    threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a page that is there, and its pictures.")] = False,
    own_tiers: TiersOption = None,
) -> None:
    """Write a bundle's page for a model hub.

    It says what the bundle is, how good, how to run it, and shows pictures.
    """
    from deploy.bundle.folder import open_bundle
    from deploy.card.files import CardFiles
    from deploy.card.text import default_place, page
    from deploy.cli.progress import Steps
    from deploy.runtime.pipeline import Pipeline

    _check_names(base_model or [], license_id)
    opened = open_bundle(bundle)
    chosen = _prompts(opened.manifest.student.name, prompt or [], prompts, pictures)
    files = CardFiles(opened, output or default_place(opened), len(chosen), force)
    samples, drawn = files.samples(chosen, seed), []
    if samples:
        try:
            pipeline = Pipeline(opened, threads=threads, runtime=runtime)
        except InputError as error:  # a phone's bundle may have no runtime on this machine
            remedies = [*([error.remedy] if error.remedy else []), "--pictures 0 writes the page without pictures"]
            raise InputError(error.headline, error.complaints, "; or ".join(remedies)) from error
        for sample in samples:
            with Steps(messages) as steps:
                drawn.append(pipeline.generate(sample.prompt, sample.seed, progress=steps)[0])
    for file in files.write(page(opened, samples, base_model or [], license_id), drawn):
        typer.echo(str(file))


def _prompts(student: str, given: list[str], file: Path | None, count: int | None) -> tuple[str, ...]:
    from deploy.prompts import prompts_for, read_prompts

    if given and file is not None:
        complaint = Complaint("--prompts", "disagrees with --prompt", "one of them")
        raise InputError("The pictures cannot be drawn.", [complaint], "leave one of them out")
    if count == 0:
        return ()
    prompts = tuple(given) if given else read_prompts(file) if file is not None else prompts_for(student)
    wanted = count or (min(len(prompts), MAX_PICTURES) if given else min(4, len(prompts)))
    if wanted > len(prompts):
        complaint = Complaint("--pictures", "more than there are prompts", f"at most {len(prompts)}", str(wanted))
        raise InputError("The pictures cannot be drawn.", [complaint], "give more prompts")
    return prompts[:wanted]


def _check_names(base_models: list[str], licence: str | None) -> None:
    """Names that a hub has; anything else would be refused there."""
    complaints = [
        Complaint("--base-model", "is no name of a model", "ORGANISATION/NAME", name)
        for name in base_models
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII)
    ]
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence, re.ASCII):
        complaints.append(Complaint("--license", "is no name of a licence", "as the hub lists them, e.g. apache-2.0", licence))
    if complaints:
        raise InputError("The page cannot be written.", complaints)
