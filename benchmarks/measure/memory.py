"""Memory of processes: of parts of this one, and of another.

What is promised is *anonymous* memory, pages that are no file's: mapped weights can be dropped and read again, these cannot.
Linux counts them; elsewhere psutil tells what comes nearest, and ``method`` says what that is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from benchmarks.extra import need

if TYPE_CHECKING:
    import psutil

LINUX = Path("/proc/self/status").exists()
SAMPLE_SECONDS = 0.002
SAMPLE_SECONDS_ELSEWHERE = 0.02  # psutil walks all pages to tell private ones
METHOD = (
    f"anonymous pages (RssAnon), sampled by another process every {1000 * SAMPLE_SECONDS:.0f} ms; resident: the kernel's VmHWM"
)
METHOD_ELSEWHERE = (
    f"private pages (uss), sampled every {1000 * SAMPLE_SECONDS_ELSEWHERE:.0f} ms, which shorter peaks escape; "
    "resident: likewise (rss)"
)
RESET_PEAK = "5"  # written to clear_refs: VmHWM starts anew (Linux, Documentation/filesystems/proc.rst)

# Not psutil: a device that only draws, where bundles are measured too, need not have it; and with its import an interpreter is
# there after 115 ms instead of 16, with its Process.memory_info a sample takes 130 microseconds instead of 7 (measured at one
# time on one CPU). The kernel's own peak is not among what it tells.
_SAMPLER = """
import os, select, sys
status = os.open("/proc/" + sys.argv[1] + "/status", os.O_RDONLY)
def now():
    text = os.pread(status, 8192, 0)
    return 1024 * int(text[text.index(b"RssAnon:") + 8:].split(None, 1)[0])
peak, watching = 0, False
while True:
    if select.select([0], [], [], float(sys.argv[2]) if watching else None)[0]:
        order = os.read(0, 1)
        if not order:
            break
        peak = now() if order == b"b" else max(peak, now())
        watching = order == b"b"
        os.write(1, b"%d\\n" % peak)
    elif watching:
        peak = max(peak, now())
"""


@dataclass
class Part:
    """What a part of the process took at its peak, in bytes; known when it is over.

    Attributes:
        memory_bytes: anonymous memory: pages that are no file's.
        resident_bytes: all pages, mapped files included; none where the system does not say.
        began: time at which it began (``time.monotonic``), in s.
        ended: likewise.
    """

    memory_bytes: int = 0
    resident_bytes: int | None = None
    began: float = 0.0
    ended: float = 0.0


class _Sampler(Protocol):
    """Finds the peaks between two orders."""

    def begin(self) -> None:
        """Begin anew."""

    def end(self) -> tuple[int, int | None]:
        """Anonymous and resident memory at their peaks, in bytes."""

    def close(self) -> None:
        """End it."""


class Peak:
    """Watches this process. A context: outside it nothing is watched.

    Raises:
        InputError: not on Linux, and psutil is not installed.
    """

    def __init__(self, linux: bool = LINUX) -> None:
        if not linux:
            need("psutil")
        self._linux = linux
        self._sampler: _Sampler | None = None
        self.method = METHOD if linux else METHOD_ELSEWHERE

    def __enter__(self) -> Self:
        self._sampler = _OtherProcess() if self._linux else _Thread()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._sampler is not None
        self._sampler.close()

    @contextmanager
    def watch(self) -> Iterator[Part]:
        """Watch a part; memory that earlier parts freed is given back to the system first."""
        assert self._sampler is not None
        give_back()
        part = Part(began=time.monotonic())
        self._sampler.begin()
        try:
            yield part
        finally:
            part.ended = time.monotonic()
            part.memory_bytes, part.resident_bytes = self._sampler.end()


class _OtherProcess:
    """Linux: looked at from outside, for this process may be busy, and Python may hold its lock, just when it holds most.

    The kernel's own peak is not touched before the first part: ``/usr/bin/time`` reads the same counter.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _SAMPLER, str(os.getpid()), str(SAMPLE_SECONDS)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._fresh = True  # whether the kernel's peak is that of the part
        self._parts = 0

    def begin(self) -> None:
        self._ask(b"b")
        self._fresh = self._parts == 0 or _reset_resident_peak()
        self._parts += 1

    def end(self) -> tuple[int, int | None]:
        return self._ask(b"e"), resident_peak_bytes() if self._fresh else None

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, order: bytes) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(order)
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


class _Thread:
    """Elsewhere: only a process itself may ask macOS for its private pages."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._peaks = (0, 0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        with self._lock:
            self._peaks = (0, 0)
        self._look()

    def end(self) -> tuple[int, int | None]:
        self._look()
        return self._peaks

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS_ELSEWHERE):
            self._look()

    def _look(self) -> None:
        with self._lock:  # while looking too: what was seen before a part began must not count for it
            now = self._process.memory_full_info()
            self._peaks = (max(self._peaks[0], now.uss), max(self._peaks[1], now.rss))


def anonymous_bytes(process: psutil.Process) -> int:
    """Anonymous memory of another process, in bytes; where the system does not tell files' pages apart, all resident memory.

    On Linux resident less shared is what ``/proc/PID/status`` calls RssAnon: the kernel counts files' pages and shared memory as
    shared (``task_statm``), whoever maps them. It is no walk through the pages, as psutil's uss is, which holds the process up.

    Raises:
        psutil.Error: it has ended, or must not be looked at.
    """
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def resident_peak_bytes(process: int | None = None) -> int:
    """The kernel's own peak of resident memory (VmHWM) in bytes, of this process or another: Linux only.

    Raises:
        OSError: the process has ended.
    """
    lines = Path(f"/proc/{process or 'self'}/status").read_text("ascii", "replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def give_back() -> None:
    """Let glibc give freed memory back to the system, so that one part's does not count for the next."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, "ascii")
    except OSError:
        return False
    return True
