"""CPU time and memory of a process and of all that it started: what a browser takes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.extra import need
from benchmarks.measure.memory import LINUX, anonymous_bytes

if TYPE_CHECKING:
    import psutil

SAMPLE_SECONDS = 0.02
METHOD = f"anonymous pages (RssAnon) of all of the browser's processes, sampled every {1000 * SAMPLE_SECONDS:.0f} ms"
METHOD_ELSEWHERE = (
    "resident memory (rss) of all of the browser's processes, what they share counted in each, "
    f"sampled every {1000 * SAMPLE_SECONDS:.0f} ms"
)


@dataclass
class TreePeak:
    """The most memory that the tree held in all, in bytes; none before it was looked at."""

    memory_bytes: int | None = None


class ProcessTree:
    """A process and its descendants.

    Args:
        root: its id.

    Raises:
        InputError: psutil is not installed.
        psutil.NoSuchProcess: there is no such process.
    """

    method = METHOD if LINUX else METHOD_ELSEWHERE

    def __init__(self, root: int) -> None:
        need("psutil")
        import psutil

        self._root, self._failure = psutil.Process(root), psutil.Error

    def cpu_ms(self) -> float:
        """CPU time of all of them so far, in ms; where the system keeps it (Linux), that of those which have ended too."""
        seconds = 0.0
        for process in self._members():
            with contextlib.suppress(self._failure):  # it has ended meanwhile
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
        return 1000 * seconds

    @contextlib.contextmanager
    def watch(self) -> Iterator[TreePeak]:
        """Sample the memory meanwhile."""
        peak, stop = TreePeak(), threading.Event()

        def sample() -> None:
            while not stop.wait(SAMPLE_SECONDS):
                peak.memory_bytes = max(peak.memory_bytes or 0, self._memory_bytes())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            stop.set()
            thread.join()

    def _memory_bytes(self) -> int:
        total = 0
        for process in self._members():
            with contextlib.suppress(self._failure):
                total += anonymous_bytes(process)
        return total

    def _members(self) -> list[psutil.Process]:
        with contextlib.suppress(self._failure):
            return [self._root, *self._root.children(recursive=True)]
        return []
