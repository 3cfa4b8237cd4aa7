"""A benchmark's tables: every figure with its unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.results.comparison import difference
from benchmarks.results.record import Entry, Results, Series
from benchmarks.results.statistics import Summary, summarize
from exporters.reference.decibels import EQUAL_DB

PICTURE_HEADS = (
    "bundle",
    "target",
    "picture, median",
    "p90",
    "p99",
    "spread",
    "n",
    "over the first row",
    "CPU time",
    "first, loading included",
    "peak memory, anonymous",
    "resident",
    "on disk",
    "energy",
)
GRAPH_HEADS = (
    "bundle",
    "target",
    "graph",
    "load",
    "first run",
    "warm, median",
    "p90",
    "spread",
    "n",
    "CPU time",
    "peak memory, anonymous",
    "resident",
    "weights",
    "against fp32",
)
QUALITY_HEADS = (
    "bundle",
    "target",
    "latents, mean",
    "PSNR, mean",
    "PSNR, 5th percentile",
    "SSIM, mean",
    "pictures",
    "score (95 %)",
    "the student's",
    "lost, won (p)",
    "CLIP (the student's)",
)
UNKNOWN = "-"


def picture_rows(results: Results) -> list[tuple[str, ...]]:
    """One row for each entry that was measured."""
    there = [entry for entry in results.entries if entry.measured is not None]
    return [_picture_row(entry, there[0], results.rounds) for entry in there]


def graph_rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """One row for each graph, component or stage of each entry."""
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        assert entry.measured is not None
        for name, graph in entry.measured.graphs.items():
            wall = summarize(graph.warm.wall_ms)
            decibels = f"{entry.graph_db[name]:.1f} dB" if name in entry.graph_db else UNKNOWN
            rows.append(
                (
                    entry.bundle,
                    entry.target,
                    name,
                    median_ms(graph.load),
                    median_ms(graph.first),
                    ms(wall.median) + ("" if wall.stable else " *"),
                    ms(wall.p90),
                    ms(wall.spread),
                    str(wall.count),
                    median_ms(graph.warm, "cpu"),
                    mb(graph.peak_memory_bytes),
                    mb(graph.peak_resident_bytes),
                    mb(entry.graph_bytes.get(name)),
                    decibels,
                )
            )
    return rows


def quality_rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """One row for each entry whose pictures were compared, the worst first."""
    rows: list[tuple[str, ...]] = []
    for entry in sorted(entries, key=lambda e: e.quality.psnr_db if e.quality else 0.0):
        if (quality := entry.quality) is None:
            continue
        score, clip, latents = quality.score, quality.clip, quality.latent_db
        rows.append(
            (
                entry.bundle,
                entry.target,
                UNKNOWN if latents is None else db(latents),
                db(quality.psnr_db),
                db(quality.psnr_p5_db),
                f"{quality.ssim:.4f}",
                str(len(quality.pictures)),
                UNKNOWN if score is None else f"{score.share:.3f} ({score.low:.3f} to {score.high:.3f}, n {score.count})",
                UNKNOWN if score is None else f"{score.reference_share:.3f}",
                UNKNOWN if score is None else f"{score.lost}, {score.won} ({score.p_value:.2f})",
                UNKNOWN if clip is None else f"{clip[0]:.2f} ({clip[1]:.2f})",
            )
        )
    return rows


def worst_rows(entries: Sequence[Entry], count: int = 12) -> list[tuple[str, ...]]:
    """The pictures that differ most from the student's: bundle, target, prompt, seed, PSNR, SSIM."""
    pairs = [(entry, picture) for entry in entries if entry.quality for picture in entry.quality.pictures]
    pairs = [(entry, picture) for entry, picture in pairs if picture.psnr_db < EQUAL_DB]
    worst = sorted(pairs, key=lambda pair: pair[1].psnr_db)[:count]
    return [(e.bundle, e.target, p.prompt, str(p.seed), db(p.psnr_db), f"{p.ssim:.4f}") for e, p in worst]


def circumstances(entries: Sequence[Entry]) -> list[str]:
    """What it all depends on, a line for each entry and two for how memory and energy were found out."""
    lines = []
    for entry in entries:
        assert entry.measured is not None
        told = ", ".join(f"{key} {value}" for key, value in entry.measured.metadata.items())
        about = "" if entry.facts is None else f"; stored as {', '.join(entry.facts.schemes)}"
        lines.append(
            f"{entry.bundle} on {entry.target}: {told}; fingerprint {entry.fingerprint.removeprefix('sha256:')[:16]}{about}"
        )
    methods = {f"Peak memory is that of {entry.measured.memory_method}." for entry in entries if entry.measured}
    methods |= {
        f"Energy: {entry.measured.energy_method}." for entry in entries if entry.measured and entry.measured.energy_method
    }
    return lines + sorted(methods)


def picture_summary(entry: Entry) -> Summary:
    """A summary of the warm pictures' wall times, in ms."""
    assert entry.measured is not None
    return summarize(entry.measured.picture.warm.wall_ms)


def device(entry: Entry) -> str:
    """What ran it."""
    assert entry.measured is not None
    return entry.measured.metadata["device"]


def _picture_row(entry: Entry, base: Entry, rounds: int) -> tuple[str, ...]:
    assert entry.measured is not None
    assert base.measured is not None
    picture, wall = entry.measured.picture, picture_summary(entry)
    over = "1.00"
    if entry is not base:
        against_base = difference(base.measured.picture.warm, picture.warm, rounds, rounds, np.random.default_rng(0))
        over = f"{against_base.ratio:.2f} ({against_base.low:.2f} to {against_base.high:.2f}), {against_base.verdict}"
    return (
        entry.bundle,
        entry.target,
        ms(wall.median) + ("" if wall.stable else " *"),
        ms(wall.p90),
        ms(wall.p99),
        ms(wall.spread),
        str(wall.count),
        over,
        median_ms(picture.warm, "cpu"),
        median_ms(picture.first),
        mb(picture.peak_memory_bytes),
        mb(picture.peak_resident_bytes),
        mb(entry.bytes_on_disk),
        f"{np.median(picture.joules):.1f} J" if picture.joules else "not available",
    )


def median_ms(series: Series, kind: str = "wall") -> str:
    """The median of a series, where there is one."""
    samples = series.wall_ms if kind == "wall" else series.cpu_ms
    return ms(summarize(samples).median) if samples else UNKNOWN


def ms(value: float) -> str:
    """Milliseconds to a hundredth, or whole ones."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.2f} ms"


def mb(size: int | None) -> str:
    """Megabytes."""
    return UNKNOWN if size is None else f"{size / 1e6:,.1f} MB"


def db(value: float) -> str:
    """Decibels; equal results have no ratio."""
    return "equal" if value >= EQUAL_DB else f"{value:.1f} dB"
