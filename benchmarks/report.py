"""A benchmark as Markdown and as one HTML file that needs nothing else: every figure with its unit and its device."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from benchmarks.results import Entry, Results
from benchmarks.statistics import Summary, by_rounds, compare, summarize

HEADS = ("bundle", "target", "picture, median", "p90", "p99", "spread", "CPU time", "cold first", "peak memory", "on disk", "n")
GRAPH_HEADS = (
    "bundle",
    "target",
    "graph",
    "load",
    "first run",
    "warm, median",
    "p90",
    "spread",
    "CPU time",
    "peak memory",
    "weights",
    "dB",
)
MIXED = "The spread is over a tenth of the median, or there are fewer than five samples: not to be quoted. Close other programs, "
MIXED += "pin --threads to the physical cores, and ask for more --runs and --rounds."


def markdown(results: Results) -> str:
    """Tables of pictures and graphs, what was absent, and under which circumstances it all holds."""
    there = [entry for entry in results.entries if entry.measured is not None]
    lines = [
        "# Benchmark",
        "",
        f"{results.measured_at}, {results.rounds} interleaved rounds; commit {results.commit or 'unknown'}.",
        "",
    ]
    lines += ["## Pictures", "", *_table(HEADS, [_picture_row(entry) for entry in there]), ""]
    lines += ["## Graphs", "", *_table(GRAPH_HEADS, [row for entry in there for row in _graph_rows(entry)]), ""]
    if quality := [(e, prompt, db) for e in there for prompt, db in e.picture_db.items()]:
        worst_first = sorted(quality, key=lambda item: item[2])
        rows = [(e.bundle, e.target, prompt, f"{db:.1f} dB") for e, prompt, db in worst_first]
        lines += ["## Pictures against diffusers in fp32", "", *_table(("bundle", "target", "prompt", "PSNR"), rows), ""]
    if absent := [entry for entry in results.entries if entry.measured is None]:
        lines += ["## Not measured", "", *(f"- {entry.bundle} on {entry.target}: {entry.absent}" for entry in absent), ""]
    lines += ["## Circumstances", "", *_circumstances(there), ""]
    if not all(summary.stable for summary in map(_picture, there)):
        lines += [f"Figures with * are unstable. {MIXED}", ""]
    return "\n".join(lines)


def comparison(before: Results, after: Results, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Rows that say what changed: bundle and target, graph, ratio of median CPU and wall times, interval, verdict.

    Entries are paired by bundle and target, graphs by name.
    """
    rows: list[tuple[str, ...]] = []
    ours = {(entry.bundle, entry.target): entry for entry in after.entries if entry.measured is not None}
    for entry in before.entries:
        other = ours.get((entry.bundle, entry.target))
        if entry.measured is None or other is None or other.measured is None:
            continue
        pairs = {name: (graph.warm, other.measured.graphs[name].warm) for name, graph in entry.measured.graphs.items()}
        pairs["picture"] = entry.measured.picture.warm, other.measured.picture.warm
        for name, (first, second) in pairs.items():
            wall, cpu = (
                compare(by_rounds(getattr(first, kind), before.rounds), by_rounds(getattr(second, kind), after.rounds), rng)
                for kind in ("wall_ms", "cpu_ms")
            )
            figures = (f"{wall.ratio:.2f}", f"{wall.low:.2f} to {wall.high:.2f}", f"{wall.p_value:.3f}", f"{cpu.ratio:.2f}")
            rows.append((entry.bundle, entry.target, name, *figures, wall.verdict))
    return rows


def differing(before: Results, after: Results) -> list[tuple[str, str, str]]:
    """Circumstances that differ between paired entries: key, before, after. The student may differ, and the version."""
    found: dict[str, tuple[str, str, str]] = {}
    ours = {(entry.bundle, entry.target): entry for entry in after.entries if entry.measured is not None}
    for entry in before.entries:
        other = ours.get((entry.bundle, entry.target))
        if entry.measured is None or other is None or other.measured is None:
            continue
        one, two = entry.measured.metadata, other.measured.metadata
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key) and key not in {"flash_deploy", "student"}:
                found[key] = (key, str(one.get(key)), str(two.get(key)))
    return list(found.values())


def html(results: Results, pictures: Sequence[tuple[str, Sequence[tuple[str, str, float]]]] = ()) -> str:
    """The report as one page.

    Args:
        results: what was measured.
        pictures: for each prompt, bundles with their picture (a data URI) and its PSNR in dB.
    """
    import jinja2
    import markupsafe

    there = [entry for entry in results.entries if entry.measured is not None]
    template = resources.files("benchmarks").joinpath("report.html").read_text("utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return page.render(
        results=results,
        entries=there,
        absent=[entry for entry in results.entries if entry.measured is None],
        heads=HEADS,
        rows=[_picture_row(entry) for entry in there],
        graph_heads=GRAPH_HEADS,
        graph_rows=[row for entry in there for row in _graph_rows(entry)],
        plots=[markupsafe.Markup(plot) for plot in _plots(there)],  # noqa: S704 our own drawing
        circumstances=[line.removeprefix("- ") for line in _circumstances(there)],
        unstable="" if all(_picture(entry).stable for entry in there) else MIXED,
        pictures=[(prompt, sorted(drawn, key=lambda item: item[2])) for prompt, drawn in pictures],
    )


def _picture(entry: Entry) -> Summary:
    assert entry.measured is not None
    return summarize(entry.measured.picture.warm.wall_ms)


def _picture_row(entry: Entry) -> tuple[str, ...]:
    assert entry.measured is not None
    picture, wall = entry.measured.picture, _picture(entry)
    return (
        entry.bundle,
        entry.target,
        _ms(wall.median) + ("" if wall.stable else " *"),
        _ms(wall.p90),
        _ms(wall.p99),
        _ms(wall.spread),
        _ms(summarize(picture.warm.cpu_ms).median),
        _ms(summarize(picture.first.wall_ms).median),
        _mb(picture.peak_memory_bytes),
        _mb(entry.bytes_on_disk),
        str(wall.count),
    )


def _graph_rows(entry: Entry) -> list[tuple[str, ...]]:
    assert entry.measured is not None
    rows = []
    for name, graph in entry.measured.graphs.items():
        wall = summarize(graph.warm.wall_ms)
        figures = (summarize(graph.load.wall_ms).median, summarize(graph.first.wall_ms).median)
        db = f"{entry.graph_db[name]:.1f}" if name in entry.graph_db else "not measured"
        rows.append(
            (
                entry.bundle,
                entry.target,
                name,
                *(_ms(value) for value in figures),
                _ms(wall.median) + ("" if wall.stable else " *"),
                _ms(wall.p90),
                _ms(wall.spread),
                _ms(summarize(graph.warm.cpu_ms).median),
                _mb(graph.peak_memory_bytes),
                _mb(entry.graph_bytes.get(name, 0)),
                db,
            )
        )
    return rows


def _circumstances(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for entry in entries:
        assert entry.measured is not None
        told = ", ".join(f"{key} {value}" for key, value in entry.measured.metadata.items())
        lines.append(f"- {entry.bundle} on {entry.target}: {told}")
        lines.append(f"- {entry.bundle} on {entry.target}: peak memory is {entry.measured.memory_method}; energy: {entry.energy}")
    return lines


def _plots(entries: Sequence[Entry]) -> list[str]:
    """Latency by graph, memory, and quality against size and time, as SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    labels = [f"{entry.bundle}\n{entry.target}" for entry in entries]
    drawn = []
    with plt.rc_context({"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(8, 1.2 + 0.6 * len(entries)))
        left = np.zeros(len(entries))
        for name in dict.fromkeys(name for entry in entries for name in _graphs(entry)):
            widths = np.array([_graph_median(entry, name) for entry in entries])
            axes.barh(labels, widths, left=left, label=name)
            left += widths
        axes.set_xlabel("one warm run of each graph, ms")
        axes.invert_yaxis()
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
        drawn.append(_svg(figure))
        figure, axes = plt.subplots(figsize=(8, 1 + 0.6 * len(entries)))
        axes.barh(labels, [_peak_mb(entry) for entry in entries], color="tab:purple")
        axes.set_xlabel("peak memory of a picture, MB")
        axes.invert_yaxis()
        drawn.append(_svg(figure))
        figure, (size, speed) = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
        for entry, label in zip(entries, labels, strict=True):
            if "denoiser" in entry.graph_db:
                quality = min(entry.graph_db.values())
                size.scatter(entry.bytes_on_disk / 1e6, quality)
                speed.scatter(_picture(entry).median, quality, label=label.replace("\n", ", "))
        size.set(xlabel="bundle, MB", ylabel="worst graph against fp32, dB")
        speed.set(xlabel="picture, ms")
        speed.legend(frameon=False, fontsize=7)
        drawn.append(_svg(figure))
    return drawn


def _graphs(entry: Entry) -> dict[str, Any]:
    assert entry.measured is not None
    return dict(entry.measured.graphs)


def _graph_median(entry: Entry, name: str) -> float:
    graphs = _graphs(entry)
    return summarize(graphs[name].warm.wall_ms).median if name in graphs else 0.0


def _peak_mb(entry: Entry) -> float:
    assert entry.measured is not None
    return entry.measured.picture.peak_memory_bytes / 1e6


def _svg(figure: Any) -> str:
    from matplotlib import pyplot as plt

    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.2f} ms"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
