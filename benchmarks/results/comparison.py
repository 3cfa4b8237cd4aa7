"""Whether one benchmark, or one bundle of a benchmark, is slower than another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.results.record import Entry, Measured, Results, Series
from benchmarks.results.statistics import NONE, Difference, by_rounds, compare

HEADS = ("bundle", "target", "graph", "wall, after/before", "95 %", "p", "CPU, after/before", "verdict")
MAY_DIFFER = {"flash_deploy", "student", "tier"}


def comparison(before: Results, after: Results, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Rows that say what changed: bundle and target, graph, ratio of median wall times, interval, p, CPU ratio, verdict.

    Entries are paired by bundle and target, graphs by name.
    """
    rows: list[tuple[str, ...]] = []
    for entry, first, second in _pairs(before, after):
        for name, (one, two) in _series(first, second):
            wall = difference(one, two, before.rounds, after.rounds, rng)
            rows.append((entry.bundle, entry.target, name, *_cells(wall, one, two, before.rounds, after.rounds, rng)))
    return rows


def within(results: Results, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Rows of one benchmark: each bundle against the first one on the same target. All ran interleaved."""
    rows: list[tuple[str, ...]] = []
    first: dict[str, Entry] = {}
    for entry in results.entries:
        if entry.measured is None:
            continue
        base = first.setdefault(entry.target, entry)
        if base is entry or base.measured is None:
            continue
        for name, (one, two) in _series(base.measured, entry.measured):
            wall = difference(one, two, results.rounds, results.rounds, rng)
            cells = _cells(wall, one, two, results.rounds, results.rounds, rng)
            rows.append((f"{entry.bundle} over {base.bundle}", entry.target, name, *cells))
    return rows


def differing(before: Results, after: Results) -> list[tuple[str, str, str]]:
    """Circumstances that differ between paired entries: key, before, after. The student may differ, its tier, and the version."""
    differences: dict[str, tuple[str, str, str]] = {}
    for _, one, two in _pairs(before, after):
        for key in sorted(one.metadata.keys() | two.metadata.keys()):
            if one.metadata.get(key) != two.metadata.get(key) and key not in MAY_DIFFER:
                differences[key] = (key, str(one.metadata.get(key)), str(two.metadata.get(key)))
    return list(differences.values())


def difference(first: Series, second: Series, rounds: int, other_rounds: int, rng: np.random.Generator) -> Difference:
    """How the wall times of two series differ."""
    return compare(by_rounds(first.wall_ms, rounds), by_rounds(second.wall_ms, other_rounds), rng)


def _pairs(before: Results, after: Results) -> Iterator[tuple[Entry, Measured, Measured]]:
    theirs = {(entry.bundle, entry.target): entry.measured for entry in after.entries}
    for entry in before.entries:
        other = theirs.get((entry.bundle, entry.target))
        if entry.measured is not None and other is not None:
            yield entry, entry.measured, other


def _series(first: Measured, second: Measured) -> Iterator[tuple[str, tuple[Series, Series]]]:
    for name, graph in first.graphs.items():
        if name in second.graphs and graph.warm.wall_ms and second.graphs[name].warm.wall_ms:
            yield name, (graph.warm, second.graphs[name].warm)
    yield "picture", (first.picture.warm, second.picture.warm)


def _cells(wall: Difference, one: Series, two: Series, rounds: int, others: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Ratio, interval and p of wall time, ratio of CPU time, verdict.

    On a busy machine wall times say little, while a graph that computes twice as much still takes twice the CPU time.
    """
    figures = (f"{wall.ratio:.2f}", f"{wall.low:.2f} to {wall.high:.2f}", f"{wall.p_value:.3f}")
    if not one.cpu_ms or not two.cpu_ms:
        return (*figures, "not known", wall.verdict)
    cpu = compare(by_rounds(one.cpu_ms, rounds), by_rounds(two.cpu_ms, others), rng)
    verdict = wall.verdict
    if verdict == NONE and cpu.verdict != NONE:
        verdict = f"{cpu.verdict} in CPU time; wall time is too noisy to say"
    return (*figures, f"{cpu.ratio:.2f}", verdict)
