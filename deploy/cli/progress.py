"""Progress on a terminal; anywhere else, of what takes long, a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deploy.text import megabytes

LINE_SECONDS = 10.0
"""What ends before says nothing where there is no terminal; what takes longer says where it is, as often at most."""


class Lines:
    """Progress as lines, for logs and pipes: nothing on a terminal, which has a bar.

    Args:
        console: where to.
        clock: seconds that pass.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock, self._said = console, clock, clock()

    def __call__(self, text: str) -> None:
        """Something goes on."""
        if text and not self._console.is_terminal and self._clock() - self._said >= LINE_SECONDS:
            self._said = self._clock()
            self._console.print(text, markup=False)


@contextlib.contextmanager
def telling(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """A spinner with a text that changes, or lines."""
    lines = Lines(console)
    with console.status(escape(text)) as status:

        def tell(now: str) -> None:
            status.update(escape(now))
            lines(now)

        yield tell


class _Shown:
    """A rich progress display that is only there on a terminal, and lines elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lines = Lines(progress.console)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


class Bars(_Shown):
    """One bar for each graph, in bytes with the time left; a spinner for what has no size."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            TimeElapsedColumn(),
        )
        super().__init__(Progress(*columns, console=console, disable=not console.is_terminal))
        self._stage = self._progress.add_task("", total=None)
        self._began, self._kind = time.perf_counter(), ""
        self.seconds: dict[str, float] = {}
        """Time spent so far in each kind of stage; the kind is the first word of its text."""

    def stage(self, text: str) -> None:
        """A new stage begins."""
        now = time.perf_counter()
        if self._kind:
            self.seconds[self._kind] = self.seconds.get(self._kind, 0.0) + now - self._began
        self._began, self._kind = now, text.split(" ", maxsplit=1)[0]
        self._progress.update(self._stage, description=text)
        self._lines(text)

    def graph(self, name: str, total_bytes: int) -> Callable[[int], None]:
        """A graph's weights begin to be written."""
        self.stage(f"writing {name}")
        task, done = self._progress.add_task(name, total=total_bytes), 0

        def advance(written: int) -> None:
            nonlocal done
            done += written
            self._progress.advance(task, written)
            self._lines(f"writing {name}: {megabytes(done)} of {megabytes(total_bytes)}")

        return advance

    def note(self, text: str) -> None:
        """Something that the user should know: also where there is no terminal."""
        self._progress.console.print(f"note: {text}", markup=False)

    def total(self, name: str) -> Callable[[int, int], None]:
        """A bar fed with bytes done and bytes in all."""
        task = self._progress.add_task(name, total=None)

        def tell(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total)
            self._lines(f"{name}: {megabytes(done)} of {megabytes(total)}")

        return tell


class Steps(_Shown):
    """The stages of a generation."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        super().__init__(Progress(*columns, console=console, disable=not console.is_terminal))
        self._task = self._progress.add_task("loading", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` parts of a stage are done."""
        self._progress.update(self._task, description=stage, completed=done, total=total)
        self._lines(f"{stage}: {done} of {total}")
