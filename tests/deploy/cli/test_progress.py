"""Where there is no terminal: a line now and then of what takes long, and nothing of what does not."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from deploy.cli import progress
from deploy.cli.progress import LINE_SECONDS, Bars, Lines, Steps, telling


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "Lines", lambda console: Lines(console, clock))
    return clock


def piped() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, highlight=False, soft_wrap=True), out


def test_lines_are_seldom(clock: Clock) -> None:
    console, out = piped()
    lines = Lines(console, clock)
    for second in range(35):
        clock.now = float(second)
        lines(f"weight {second} [of] 100")
    assert out.getvalue() == "weight 10 [of] 100\nweight 20 [of] 100\nweight 30 [of] 100\n"


def by_graph(console: Console, clock: Clock) -> None:
    with Bars(console) as bars:
        bars.stage("tracing denoiser")
        clock.now += LINE_SECONDS
        advance = bars.graph("denoiser", 3_000_000)
        advance(1_000_000)
        clock.now += LINE_SECONDS
        advance(1_000_000)
        advance(1_000_000)


def by_bytes(console: Console, clock: Clock) -> None:
    with Bars(console) as bars:
        tell = bars.total("weights")
        clock.now += LINE_SECONDS
        tell(5_000_000, 9_000_000)


def by_steps(console: Console, clock: Clock) -> None:
    with Steps(console) as steps:
        clock.now += LINE_SECONDS
        steps("denoising", 1, 4)
        steps("denoising", 2, 4)


def by_text(console: Console, clock: Clock) -> None:
    with telling(console, "tuning") as tell:
        clock.now += LINE_SECONDS
        tell("encoding, weight [1] of 2")


SAID: dict[str, tuple[Callable[[Console, Clock], None], str]] = {
    "graphs": (by_graph, "writing denoiser\nwriting denoiser: 2.00 MB of 3.00 MB\n"),
    "bytes": (by_bytes, "weights: 5.00 MB of 9.00 MB\n"),
    "steps": (by_steps, "denoising: 1 of 4\n"),
    "texts": (by_text, "encoding, weight [1] of 2\n"),
}


@pytest.mark.parametrize(("work", "said"), SAID.values(), ids=SAID)
def test_each_display_says_where_it_is(work: Callable[[Console, Clock], None], said: str, clock: Clock) -> None:
    console, out = piped()
    work(console, clock)
    assert out.getvalue() == said


@pytest.mark.parametrize("work", [work for work, _ in SAID.values()], ids=SAID)
def test_what_is_short_says_nothing(work: Callable[[Console, Clock], None]) -> None:
    console, out = piped()
    work(console, Clock())
    assert out.getvalue() == ""


def test_a_terminal_has_no_lines(clock: Clock) -> None:
    out = io.StringIO()
    lines = Lines(Console(file=out, force_terminal=True), clock)
    clock.now = 2 * LINE_SECONDS
    lines("encoding")
    assert out.getvalue() == ""
