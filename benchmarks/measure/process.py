"""Times and memory of parts of this process, and what the machine is. Needs neither torch nor a runtime.

Memory is looked at from outside: this process may be busy, and Python may hold its lock, just when it holds most.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

SAMPLE_SECONDS = 0.002
METHOD = (
    f"anonymous pages (RssAnon), sampled by another process every {1000 * SAMPLE_SECONDS:.0f} ms; resident: the kernel's VmHWM"
)
METHOD_ELSEWHERE = "resident, of the whole process so far, getrusage"
RESET_PEAK = "5"  # written to clear_refs: VmHWM starts anew (Linux, Documentation/filesystems/proc.rst)

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


class Peak:
    """Watches this process. A context: outside it nothing is watched."""

    def __init__(self) -> None:
        self.linux = Path("/proc/self/status").exists()
        self._parts = 0
        self.method = METHOD if self.linux else METHOD_ELSEWHERE
        self._sampler: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self.linux:
            command = [sys.executable, "-I", "-S", "-c", _SAMPLER, str(os.getpid()), str(SAMPLE_SECONDS)]
            self._sampler = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._sampler is not None:
            self._sampler.communicate()

    @contextmanager
    def watch(self) -> Iterator[Part]:
        """Watch a part; memory that earlier parts freed is given back to the system first.

        The kernel's own peak is not touched before the first one: ``/usr/bin/time`` reads the same counter.
        """
        give_back()
        part = Part(began=time.monotonic())
        self._ask(b"b")
        reset = self.linux and (self._parts == 0 or _reset_resident_peak())
        self._parts += 1
        try:
            yield part
        finally:
            part.ended = time.monotonic()
            if self._sampler is None:
                part.memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            else:
                part.memory_bytes = self._ask(b"e")
                part.resident_bytes = _resident_peak() if reset else None

    def _ask(self, order: bytes) -> int:
        if self._sampler is None:
            return 0
        assert self._sampler.stdin is not None
        assert self._sampler.stdout is not None
        self._sampler.stdin.write(order)
        self._sampler.stdin.flush()
        return int(self._sampler.stdout.readline())


def give_back() -> None:
    """Let glibc give freed memory back to the system, so that one part's does not count for the next."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def timed(run: Callable[[], Any], times: int) -> dict[str, list[float]]:
    """Run again and again: ``wall_ms`` of each run, and ``cpu_ms``, the CPU time of all threads."""
    wall, cpu = [], []
    for _ in range(times):
        began, busy = time.perf_counter(), time.process_time()
        run()
        wall.append(1000 * (time.perf_counter() - began))
        cpu.append(1000 * (time.process_time() - busy))
    return {"wall_ms": wall, "cpu_ms": cpu}


def describe_machine(threads: int | None) -> dict[str, str]:
    """What any measurement on this machine depends on, in words."""
    return {
        "cpu": cpu_name(),
        "cpus": str(os.cpu_count()),
        "memory_gb": f"{_memory_bytes() / 1e9:.0f}",
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "threads": "the runtime's choice" if threads is None else str(threads),
    }


def cpu_name() -> str:
    """The processor, as it calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, "ascii")
    except OSError:
        return False
    return True


def _resident_peak() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
