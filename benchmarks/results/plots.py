"""A benchmark's plots, as SVG: latency, memory, quality against size and time with the Pareto front, sensitivity of layers."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results.record import Entry
from benchmarks.results.statistics import summarize
from benchmarks.results.tables import device, mb, ms, picture_summary
from exporters.reference.decibels import EQUAL_DB
from quantization.errors import Complaint, InputError

BAR_INCHES, WIDTH_INCHES = 0.42, 8.4
SEEN_DB = 80.0  # pictures that differ less are drawn on the upper edge: no 8-bit picture shows it (a step of 1/255 is 48 dB)
MOST_ROWS = 48  # of a heat map; beyond that layers are summed up by block
STYLE: Any = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
ONE, TWO, FAINT, MARK = "#31688e", "#35b779", "#c9d3df", "#d1495b"


def latency(entries: Sequence[Entry]) -> str:
    """Median picture of each entry, the 90th percentile as a whisker; what of it the graphs took, where they were told apart."""
    with _figure(0.9 + BAR_INCHES * len(entries)) as (figure, axes):
        summaries = [picture_summary(entry) for entry in entries]
        medians = [summary.median for summary in summaries]
        above = [max(0.0, summary.p90 - summary.median) for summary in summaries]
        axes.barh(_labels(entries), medians, xerr=[[0] * len(above), above], color=ONE, ecolor=MARK, capsize=3)
        for i, summary in enumerate(summaries):
            axes.annotate(f"{ms(summary.median)} ", (0, i), va="center", color="white", xytext=(4, 0), textcoords="offset points")
        axes.set(xlabel=f"one picture, ms: median, whisker to the 90th percentile; {_devices(entries)}")
        axes.invert_yaxis()
        return _svg(figure)


def graph_latency(entries: Sequence[Entry]) -> str:
    """One warm run of each graph, side by side in one bar."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(name for entry in entries for name in _graphs(entry)))
    colours = colormaps["viridis"](np.linspace(0.15, 0.9, max(2, len(names))))
    with _figure(1.3 + BAR_INCHES * len(entries)) as (figure, axes):
        left = np.zeros(len(entries))
        for name, colour in zip(names, colours, strict=False):
            widths = np.array([_graph_median(entry, name) for entry in entries])
            axes.barh(_labels(entries), widths, left=left, label=name, color=colour)
            left += widths
        axes.set(
            xlabel=f"one warm run of each graph or component (a stage of a browser: of the picture), ms; {_devices(entries)}"
        )
        axes.invert_yaxis()
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8)
        return _svg(figure)


def memory(entries: Sequence[Entry]) -> str:
    """Peak memory of a picture: anonymous, and all resident pages behind it."""
    with _figure(1.1 + BAR_INCHES * len(entries)) as (figure, axes):
        anonymous = [(_picture(entry).peak_memory_bytes or 0) / 1e6 for entry in entries]
        resident = [(_picture(entry).peak_resident_bytes or 0) / 1e6 for entry in entries]
        axes.barh(_labels(entries), resident, color=FAINT, label="resident (mapped files included)")
        axes.barh(_labels(entries), anonymous, color=TWO, height=0.5, label="anonymous")
        for i, entry in enumerate(entries):
            text = mb(_picture(entry).peak_memory_bytes)
            axes.annotate(text, (anonymous[i], i), va="center", xytext=(4, 0), textcoords="offset points")
        axes.set(xlabel="peak memory of a picture, MB")
        axes.invert_yaxis()
        axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8)
        return _svg(figure)


def pareto(entries: Sequence[Entry]) -> str:
    """Quality against size and against time; what nothing else beats in both is filled and joined. Empty without quality.

    The student itself is left out: it is what the others are compared with.
    """
    decibels = {id(entry): _decibels(entry) for entry in entries if entry.facts is not None or entry.quality is not None}
    shown = [entry for entry in entries if id(entry) in decibels and (decibels[id(entry)][0] or EQUAL_DB) < EQUAL_DB]
    if not shown:
        return ""
    metric = decibels[id(shown[0])][1]
    shown = [entry for entry in shown if decibels[id(entry)][1] == metric]
    axes_of: list[tuple[str, Callable[[Entry], float], Callable[[Entry], str]]] = [
        ("on disk, MB", lambda entry: entry.bytes_on_disk / 1e6, lambda entry: entry.bundle),
        (f"one picture, ms ({_devices(shown)})", lambda e: picture_summary(e).median, lambda e: f"{e.bundle}, {e.target}"),
    ]
    with _figure(4.6, columns=2) as (figure, panels):
        for panel, (label, cost, name) in zip(panels, axes_of, strict=True):
            points = [(cost(entry), min(decibels[id(entry)][0] or 0.0, SEEN_DB)) for entry in shown]
            front = pareto_front(points)
            line = sorted(points[i] for i in front)
            panel.plot([x for x, _ in line], [y for _, y in line], color=MARK, linewidth=1, zorder=1, label="Pareto front")
            named: set[str] = set()
            for i, (x, y) in enumerate(points):
                panel.scatter(x, y, zorder=2, edgecolor=ONE, facecolor=ONE if i in front else "white")
                if (text := name(shown[i])) not in named:
                    up = 5 if len(named) % 2 == 0 else -11
                    panel.annotate(text, (x, y), xytext=(6, up), textcoords="offset points", fontsize=7)
                named.add(text)
            panel.set(xlabel=label, ylabel=f"{metric} (at most {SEEN_DB:.0f})")
            panel.set_xlim(0, 1.4 * max(x for x, _ in points))  # room for names
            panel.margins(y=0.12)
            panel.grid(alpha=0.25)
            panel.legend(frameon=False, fontsize=8, loc="lower right")
        return _svg(figure)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats: none is at most as costly and at least as good, and better in one of both.

    >>> pareto_front([(1.0, 30.0), (2.0, 40.0), (3.0, 35.0)])
    [0, 1]
    """
    return [
        i
        for i, (cost, quality) in enumerate(points)
        if not any(c <= cost and q >= quality and (c < cost or q > quality) for c, q in points)
    ]


def heat_map(folder: Path) -> str:
    """Layers x schemes: the predicted error of the picture when that layer alone is stored so, in dB of PSNR.

    Args:
        folder: of ``tune --report``.

    Raises:
        InputError: it holds no ``sensitivity.csv`` of that kind.
    """
    errors, chosen = _sensitivities(folder / "sensitivity.csv")
    if len(errors) > MOST_ROWS:
        errors, chosen = _by_block(errors, chosen)
    schemes = list(dict.fromkeys(scheme for options in errors.values() for scheme in options))
    schemes.sort(key=lambda scheme: -np.mean([options[scheme] for options in errors.values() if scheme in options]))
    from matplotlib.patches import Rectangle

    table = np.full((len(errors), len(schemes)), np.nan)
    for i, options in enumerate(errors.values()):
        for scheme, error in options.items():
            table[i, schemes.index(scheme)] = -10 * np.log10(max(error, 1e-12))
    with _figure(1.4 + 0.2 * len(errors)) as (figure, axes):
        image = axes.imshow(table, aspect="auto", cmap="magma")
        axes.set_xticks(range(len(schemes)), schemes, fontsize=8)
        axes.set_yticks(range(len(errors)), list(errors), fontsize=7)
        axes.xaxis.tick_top()
        middle = np.nanmean([np.nanmin(table), np.nanmax(table)])
        for (i, j), decibels in np.ndenumerate(table):
            if np.isfinite(decibels):
                axes.annotate(f"{decibels:.0f}", (j, i), ha="center", va="center", fontsize=6, color=_ink(decibels > middle))
        for i, name in enumerate(errors):
            if chosen.get(name) in schemes:
                at = (schemes.index(chosen[name]) - 0.46, i - 0.42)
                axes.add_patch(Rectangle(at, 0.92, 0.84, fill=False, edgecolor="#35d07f", linewidth=1.6))
        bar = figure.colorbar(image, ax=axes, fraction=0.05)
        bar.set_label("predicted PSNR of pictures, dB, when this alone is stored so")
        return _svg(figure)


def _ink(on_light: bool) -> str:
    return "black" if on_light else "white"


def _sensitivities(file: Path) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    errors: dict[str, dict[str, float]] = {}
    chosen: dict[str, str] = {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                name = f"{row['component']}: {row['weight'].removesuffix('.weight')}"
                errors.setdefault(name, {})[row["scheme"]] = float(row["predicted_mean_square"])
                if row["chosen"] == "1":
                    chosen[name] = row["scheme"]
    except OSError as error:
        complaint = Complaint("--tuned", error.strerror or str(error), "a folder of `tune --report`", str(file))
        raise InputError("The sensitivities cannot be read.", [complaint]) from error
    except (KeyError, ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        complaint = Complaint("--tuned", f"no table of sensitivities: {error}", got=str(file))
        raise InputError("The sensitivities cannot be read.", [complaint]) from error
    if not errors:
        raise InputError("The sensitivities cannot be read.", [Complaint("--tuned", "the table is empty", got=str(file))])
    return errors, chosen


def _by_block(errors: dict[str, dict[str, float]], chosen: dict[str, str]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Errors of a block's layers, added up (predicted mean squares of independent roundings add), and what most of them chose."""
    blocks: dict[str, dict[str, float]] = {}
    votes: dict[str, Counter[str]] = {}
    for name, options in errors.items():
        match = re.match(r"(.*?\.\d+)(\.|$)", name)
        block = match[1] if match else name.split(".")[0]
        for scheme, error in options.items():
            blocks.setdefault(block, {}).setdefault(scheme, 0.0)
            blocks[block][scheme] += error
        votes.setdefault(block, Counter())[chosen.get(name, "")] += 1
    return blocks, {block: count.most_common(1)[0][0] for block, count in votes.items()}


def _decibels(entry: Entry) -> tuple[float | None, str]:
    """The entry's quality, and what it is: of pictures where they were compared, else of its worst graph."""
    if entry.quality is not None:
        return entry.quality.psnr_db, "pictures against the fp32 student, mean PSNR, dB"
    return min(entry.graph_db.values(), default=None), "worst graph against fp32, dB"


def _labels(entries: Sequence[Entry]) -> list[str]:
    return [f"{entry.bundle}, {entry.target}" for entry in entries]


def _devices(entries: Sequence[Entry]) -> str:
    return ", ".join(dict.fromkeys(device(entry) for entry in entries))


def _picture(entry: Entry) -> Any:
    assert entry.measured is not None
    return entry.measured.picture


def _graphs(entry: Entry) -> dict[str, Any]:
    """But for what is told of several stages at once."""
    assert entry.measured is not None
    return {name: graph for name, graph in entry.measured.graphs.items() if not name.startswith("stage: loading")}


def _graph_median(entry: Entry, name: str) -> float:
    graphs = _graphs(entry)
    return summarize(graphs[name].warm.wall_ms).median if name in graphs else 0.0


@contextmanager
def _figure(height: float, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """A figure of the page's width in the page's style, and its axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        yield figure, figure.subplots(1, columns)


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
