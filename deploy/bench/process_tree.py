"""CPU time and memory of a process and of all that it started, from Linux's ``/proc``: what a browser takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
METHOD = f"anonymous pages (RssAnon) of all of the browser's processes, sampled every {1000 * SAMPLE_SECONDS:.0f} ms"
METHOD_ELSEWHERE = "not available: needs Linux's /proc"
_PARENT, _CPU = 1, slice(11, 15)  # fields of /proc/PID/stat behind the name: parent; user, system, and those of ended children


@dataclass
class TreePeak:
    """The most memory that the tree held in all, in bytes; none where the system does not say."""

    memory_bytes: int | None = None


class ProcessTree:
    """A process and its descendants.

    Args:
        root: its id.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self.linux = Path(f"/proc/{root}/stat").exists()
        self.method = METHOD if self.linux else METHOD_ELSEWHERE

    def cpu_ms(self) -> float | None:
        """CPU time of all of them so far, in ms; none where the system does not say."""
        if not self.linux:
            return None
        stats = _stats()
        ticks = sum(int(field) for pid in self._members(stats) for field in stats[pid][_CPU])
        return 1000 * ticks / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def watch(self) -> Iterator[TreePeak]:
        """Sample the memory meanwhile."""
        peak, stop = TreePeak(), threading.Event()
        if not self.linux:
            yield peak
            return

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
        for pid in self._members(_stats()):
            with suppress(OSError):  # it has ended meanwhile
                status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
                total += sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
        return total

    def _members(self, stats: dict[int, list[str]]) -> set[int]:
        members, grown = {self._root} & stats.keys(), True
        while grown:
            more = {pid for pid, fields in stats.items() if int(fields[_PARENT]) in members} - members
            members, grown = members | more, bool(more)
        return members


def _stats() -> dict[int, list[str]]:
    """Fields of every process behind its name (which may hold spaces and brackets)."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                found[int(folder.name)] = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return found
