"""Progress on a terminal; silence anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
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


class _Shown:
    """A rich progress display that is only there on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

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

    def graph(self, name: str, total_bytes: int) -> Callable[[int], None]:
        """A graph's weights begin to be written."""
        self.stage(f"writing {name}")
        task = self._progress.add_task(name, total=total_bytes)
        return lambda written: self._progress.advance(task, written)

    def note(self, text: str) -> None:
        """Something that the user should know: also where there is no terminal."""
        self._progress.console.print(f"note: {text}", markup=False)

    def total(self, name: str) -> Callable[[int, int], None]:
        """A bar fed with bytes done and bytes in all."""
        task = self._progress.add_task(name, total=None)
        return lambda done, total: self._progress.update(task, completed=done, total=total)


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
