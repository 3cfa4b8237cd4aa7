"""Times of parts of this process, and what the machine is. Needs neither torch nor a runtime."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def _memory_bytes() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil  # Windows, where memory is measured with it too

    return int(psutil.virtual_memory().total)
