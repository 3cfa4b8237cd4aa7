"""The commands that measure, compare and predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import (
    IgnoreLoraOption,
    LoraOption,
    TextEncoder2Option,
    TextEncoder3Option,
    TextEncoderOption,
    ThreadsOption,
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
from deploy.errors import Complaint, InputError
from deploy.text import table
from quantization.files import check_writable, write_bytes, write_text


def bench(
    ctx: typer.Context,
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to measure side by side.", show_default=False)],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Where to measure (repeatable); a wrong name lists them. Default: what is installed.", show_default=False
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each graph and picture in each round.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes of each, interleaved; `compare` needs 5.")] = 5,
    warm_ups: Annotated[int, typer.Option(min=0, help="Runs of each graph before those, recorded apart.")] = 1,
    threads: ThreadsOption = None,
    student: Annotated[
        Path | None,
        typer.Option(help="Also compare with this student in diffusers; 'builtin' is the built-in one.", show_default=False),
    ] = None,
    variant: VariantOption = None,
    ignore_lora: IgnoreLoraOption = False,
    lora: LoraOption = None,
    transformer: TransformerOption = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    text_encoder_2: TextEncoder2Option = None,
    text_encoder_3: TextEncoder3Option = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="With --student: prompts, one a line. Default: the student's own, or prompts of all sorts.", show_default=False
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="With --student: how many of them are drawn and compared.")] = 4,
    score: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000,
            help="With --student builtin, or another of a captioned world: pictures that its scorer judges; a claim needs 500.",
        ),
    ] = 0,
    clip: Annotated[
        Path | None,
        typer.Option(
            help="With --student: folder of a CLIP model (transformers, safetensors) that scores pictures.", show_default=False
        ),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(help="Folder of `tune --report`, for the sensitivities in the --html report.", show_default=False),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(help="Measure elsewhere: a command with {command} in it, e.g. 'ssh phone {command}'.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for samples and circumstances.", show_default=False)
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="File for a report in one page.", show_default=False)] = None,
    own_tiers: TiersOption = None,
) -> None:
    """Measure bundles side by side: time, memory, quality.

    Rounds of fresh processes are interleaved; figures are latency and CPU time of graphs and pictures, memory, energy where it
    can be read, and pictures against the student's own.
    """
    from benchmarks.results.advice import advise
    from benchmarks.results.picture_grid import grid
    from benchmarks.results.report import html, markdown
    from deploy.bench.advice import advice_tiers, forecasts
    from deploy.bench.request import BenchRequest
    from deploy.bench.run import bench as run_bench

    if student is not None or lora:
        need_export()
    if student is not None:
        student = builtin_or(student)
    if html_file is not None:
        need_export()
    for option, file in (("--json", json_file), ("--html", html_file)):
        if file is not None:
            check_writable(file, option, "The report cannot be written.")
    if tuned is not None:
        from benchmarks.results.plots import heat_map

        heat_map(tuned)  # before hours of measuring: it may be no such folder
    request = BenchRequest(
        bundles=tuple(bundles),
        targets=tuple(target or ()),
        runs=runs,
        rounds=rounds,
        warm_ups=warm_ups,
        threads=threads,
        student=student,
        variant=variant,
        ignore_lora=ignore_lora,
        lora=parse_loras(lora),
        components=given_components(ctx.params),
        remote=remote,
        prompts=prompts,
        pictures=pictures,
        score=score,
        clip=clip,
    )
    with telling(messages, "measuring") as tell:
        benchmark = run_bench(request, tell)
    results = benchmark.results
    if json_file is not None:
        write_bytes(json_file, results.to_json())
    advice = advise(advice_tiers(), results.entries, results.rounds, forecasts(bundles))
    if html_file is not None:
        write_text(html_file, html(results, advice, grid(benchmark.pictures, results), tuned))
    typer.echo(markdown(results, advice))


def compare(
    before: Annotated[Path, typer.Argument(help="A file of `bench --json`.", show_default=False)],
    after: Annotated[
        Path | None,
        typer.Argument(help="Another. Without it: each bundle of the one file against its first.", show_default=False),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A circumstance that may differ, e.g. runtime (repeatable).", show_default=False)
    ] = None,
    own_tiers: TiersOption = None,
) -> None:
    """Say what became slower or faster between benchmarks.

    And whether that is more than noise.
    """
    import numpy as np

    from benchmarks.results.comparison import HEADS, comparison, differing, within
    from benchmarks.results.record import load_results

    first = load_results(before)
    if after is None:
        rows = within(first, np.random.default_rng(0))
        missing = Complaint(str(before), "has no two bundles on one target")
    else:
        second = load_results(after)
        unlike = [item for item in differing(first, second) if item[0] not in (allow or [])]
        if unlike:
            complaints = [Complaint(key, "differs", one, two) for key, one, two in unlike]
            remedy = "measure side by side, or --allow what may differ"
            raise InputError("The benchmarks cannot be compared.", complaints, remedy)
        rows = comparison(first, second, np.random.default_rng(0))
        missing = Complaint(str(after), "has no bundle on a target in common")
    if not rows:
        raise InputError("The benchmarks cannot be compared.", [missing])
    typer.echo("\n".join(table([HEADS, *rows])))


def predict(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles.", show_default=False)],
    tier: Annotated[
        list[str] | None,
        typer.Option(help="Device tier (repeatable), of the bundle's format. Default: the bundle's own.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for every figure, operators by kind.", show_default=False)
    ] = None,
    own_tiers: TiersOption = None,
) -> None:
    """Predict latency on devices that are not here.

    From FLOPs, bytes and what the devices can do; nothing is run.
    """
    need_export()
    from deploy.bundle.folder import open_bundle
    from deploy.forecast.predict import costs, predictions
    from deploy.forecast.show import as_data, render

    if json_file is not None:
        check_writable(json_file, "--json", "The forecast cannot be written.")
    opened = [open_bundle(folder) for folder in bundles]
    texts, data = [], []
    for bundle in opened:
        with messages.status(f"counting {bundle.folder.name}"):
            counted = costs(bundle)
            predicted = predictions(bundle, tier or (), counted)
        texts.append(render(bundle, counted, predicted))
        data.append(as_data(bundle, counted, predicted))
    if json_file is not None:
        write_text(json_file, json.dumps(data, indent=2) + "\n")
    typer.echo("\n\n".join(texts))
