"""A benchmark as Markdown and as one HTML file that needs nothing else: every figure with its unit and its device."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from benchmarks.quality.pictures import CLOSE_DB
from benchmarks.results import plots
from benchmarks.results.advice import Advice, lead
from benchmarks.results.picture_grid import GAIN, Row
from benchmarks.results.record import Entry, Results
from benchmarks.results.tables import (
    GRAPH_HEADS,
    PICTURE_HEADS,
    QUALITY_HEADS,
    circumstances,
    graph_rows,
    picture_rows,
    picture_summary,
    quality_rows,
    worst_rows,
)

UNSTABLE = (
    "Figures with * are unstable: their spread is over a tenth of the median, or there are fewer than five samples. They are not "
    "to be quoted. Close other programs, pin --threads to the physical cores, and ask for more --runs and --rounds."
)
WORST_HEADS = ("bundle", "target", "prompt", "seed", "PSNR", "SSIM")
HOW = (
    "Medians are over all runs of all rounds; spread is the median absolute deviation times 1.4826. Each round is a fresh "
    "process; the rounds of all rows are interleaved. Bundles load each graph when its turn comes; peers, and targets that "
    "end in -kept, have everything loaded. First: importing the runtime, loading, and one picture; files are in the "
    "system's cache. Over the first row: ratio of the rounds' medians, its 95 % interval, and what an exact permutation "
    "test says."
)


def markdown(results: Results, advice: Sequence[Advice] = ()) -> str:
    """Advice, tables, what was absent, and under which circumstances it all holds."""
    there, absent = _split(results)
    lines = ["# Benchmark", ""]
    if advice:
        lines += [lead(advice), ""]
    lines += [_when(results), ""]
    lines += ["## Pictures", "", *_table(PICTURE_HEADS, picture_rows(results)), ""]
    if rows := quality_rows(there):
        lines += ["## Quality, against the fp32 student", "", *_table(QUALITY_HEADS, rows), ""]
        lines += ["### The worst pictures", "", *_table(WORST_HEADS, worst_rows(there)), ""]
    lines += ["## Graphs", "", *_table(GRAPH_HEADS, graph_rows(there)), ""]
    if advice:
        lines += ["## Tiers", ""]
        for one in advice:
            against = "".join(f"; {reason}" for reason in one.against)
            predicted = "".join(f"; predicted, not measured: {forecast}" for forecast in one.predicted)
            lines.append(f"- **{one.tier.name}**: {one.bundle or 'none'}: {one.why}{against}{predicted}")
        lines.append("")
    if absent:
        lines += ["## Not measured", "", *(f"- {entry.bundle} on {entry.target}: {entry.absent}" for entry in absent), ""]
    lines += ["## Circumstances", "", HOW, "", *(f"- {line}" for line in circumstances(there)), ""]
    if not _stable(there):
        lines += [UNSTABLE, ""]
    return "\n".join(lines)


def html(results: Results, advice: Sequence[Advice] = (), pictures: Sequence[Row] = (), tuned: Path | None = None) -> str:
    """The report as one page.

    Args:
        results: what was measured.
        advice: what to ship to which tier.
        pictures: the grid of prompts and bundles.
        tuned: a folder of ``tune --report``, for the heat map of sensitivities.

    Raises:
        InputError: the folder holds no sensitivities.
    """
    import jinja2
    import markupsafe

    there, absent = _split(results)
    template = resources.files("benchmarks.results").joinpath("report.html").read_text("utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)

    def safe(drawing: str) -> markupsafe.Markup:
        return markupsafe.Markup(drawing)  # noqa: S704 our own drawing

    return page.render(
        when=_when(results),
        lead=lead(advice) if advice else "",
        advice=advice,
        close_db=CLOSE_DB,
        latency=safe(plots.latency(there)),
        graph_latency=safe(plots.graph_latency(there)),
        memory=safe(plots.memory(there)),
        pareto=safe(plots.pareto(there)),
        heat_map=safe(plots.heat_map(tuned)) if tuned else "",
        picture_heads=PICTURE_HEADS,
        picture_rows=picture_rows(results),
        quality_heads=QUALITY_HEADS,
        quality_rows=quality_rows(there),
        graph_heads=GRAPH_HEADS,
        graph_rows=graph_rows(there),
        pictures=pictures,
        gain=GAIN,
        absent=absent,
        how=HOW,
        circumstances=circumstances(there),
        unstable="" if _stable(there) else UNSTABLE,
    )


def _split(results: Results) -> tuple[list[Entry], list[Entry]]:
    """Entries that were measured, and those that were not."""
    there = [entry for entry in results.entries if entry.measured is not None]
    return there, [entry for entry in results.entries if entry.measured is None]


def _stable(entries: Sequence[Entry]) -> bool:
    return all(picture_summary(entry).stable for entry in entries)


def _when(results: Results) -> str:
    devices = ", ".join(dict.fromkeys(e.measured.metadata["device"] for e in results.entries if e.measured))
    commit = results.commit or "unknown"
    return f"Measured on {devices}, {results.measured_at}, in {results.rounds} interleaved rounds; commit {commit}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
