"""A study's tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.quality.paired import PairedDifference
from benchmarks.studies.distilled.figures import MARGIN, Scored
from benchmarks.studies.distilled.study import Study

__all__ = ["markdown", "points", "table"]

NONE = "-"


INTRODUCTION = (
    "Same captions and same noise for all; intervals are of 95 %, differences in points of a hundred (Newcombe's for pairs), p "
    "of the exact McNemar test. Nothing is corrected for the number of rows."
)
VARIOUS = (
    "Kolmogorov-Smirnov distances of centres and sizes to the renderer's law, and between two seeds of a network's own noise; "
    "spread: how far things lie apart in two pictures of one caption, over the renderer's. Controls are pictures of the "
    "renderer: the first shows what chance makes of as many pictures, the second is far from the law, the third has no spread."
)


def markdown(facts: Study) -> str:
    """All tables of a study."""
    sharp = [(one.name, f"{one.stray:.2%}", NONE if one.std is None else f"{one.std:.3f}") for one in facts.new]
    seeds = ", ".join(map(_percent, facts.teacher_seeds))
    parts = [
        f"# What the networks of {facts.recipe} are worth",
        ", ".join(f"{name} {value}" for name, value in facts.circumstances.items()),
        INTRODUCTION,
        f"## Right pictures, against {facts.best}, the teacher at its best",
        table(_right_heads(), _right_rows(facts.new)),
        "## By kind of caption",
        table(*_by_group(facts.new)),
        "## How various right pictures are",
        VARIOUS,
        table(*_various(facts)),
        f"Right pictures of {facts.best} by seed of its noise: {seeds}.",
        "## How sharp pictures are",
        table(("", "pixels near no entry of the palette", "standard deviation of latents"), sharp),
        "## On the built-in student's captions, by its scorer, against it",
        table(_right_heads(within=False), _right_rows(facts.old, within=False)),
        "### By kind",
        table(*_by_group(facts.old)),
    ]
    return "\n\n".join(parts) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def points(value: float, low: float, high: float) -> str:
    """A difference with its interval, in points of a hundred.

    >>> points(-0.0123, -0.031, 0.0064)
    '-1.2 (-3.1 to +0.6)'
    """
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _right_heads(*, within: bool = True) -> tuple[str, ...]:
    heads = ("", "steps", "right", "95 %", "n", "difference", "lost, won", "p")
    return (*heads, f"within {100 * MARGIN:g} points") if within else heads


def _right_rows(rows: Sequence[Scored], *, within: bool = True) -> list[tuple[str, ...]]:
    return [tuple(_right_row(one, within=within)) for one in rows]


def _right_row(one: Scored, *, within: bool) -> Iterator[str]:
    whole, against = one.whole, one.against
    yield from (one.name, str(one.steps or NONE), _percent(whole.share))
    yield from (f"{100 * whole.low:.1f} to {100 * whole.high:.1f}", str(whole.count))
    if against is None:
        yield from ("the reference", *[NONE] * (3 if within else 2))
        return
    yield from (_against(against), f"{against.lost}, {against.won}", f"{against.p_value:.2g}")
    if within:
        yield "yes" if against.within(MARGIN) else "no"


def _against(against: PairedDifference) -> str:
    return points(against.difference, against.low, against.high)


def _by_group(rows: Sequence[Scored]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Shares within groups, each with its difference; rows of fewer captions have fewer in each."""
    most = max(rows, key=lambda one: one.whole.count)
    cells = []
    for one in rows:
        shares = []
        for group in most.groups:
            share, against = one.groups.get(group), one.groups_against.get(group)
            told = "" if against is None else f", {_against(against)}"
            shares.append(NONE if share is None else _percent(share.share) + told)
        cells.append((one.name, *shares))
    return ("", *(f"{group} (n {share.count})" for group, share in most.groups.items())), cells


def _various(facts: Study) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    by_kind = sorted({kind for one in facts.various for kind in one.law or {}} - {"all"})

    def told(value: float | None) -> str:
        return NONE if value is None else f"{value:.3f}"

    rows = [
        (
            one.name,
            str(one.right),
            told((one.law or {}).get("all")),
            *(told((one.law or {}).get(kind)) for kind in by_kind),
            told(one.seeds),
            told(one.spread),
        )
        for one in facts.various
    ]
    return ("", "right pictures", "to the renderer's law", *by_kind, "between two seeds", "spread"), rows
