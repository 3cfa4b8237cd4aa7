"""Memory as the kernel counts it, and where psutil tells it in its place."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from benchmarks.measure.memory import LINUX, METHOD_ELSEWHERE, Peak, anonymous_bytes, resident_peak_bytes
from benchmarks.studies.full_size import peak_memory
from quantization.errors import InputError

MAPPED, OWN = 48 << 20, 32 << 20
HOLDS = f"""
import mmap, sys
with open(sys.argv[1], "rb") as stream:
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
touched = sum(mapped[i] for i in range(0, {MAPPED}, {mmap.PAGESIZE}))
block = bytes([7]) * {2 * OWN}
block = bytes([7]) * {OWN}
print(flush=True)
sys.stdin.read()
"""
linux_only = pytest.mark.skipif(not LINUX, reason="needs Linux's /proc")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[psutil.Process]:
    """A process that sleeps on a mapped file and memory of its own, and has held more of that before."""
    (tmp_path / "weights").write_bytes(bytes([1]) * MAPPED)
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "weights")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield psutil.Process(process.pid)
        process.communicate()


def status(process: psutil.Process, field: str) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


@linux_only
def test_anonymous_memory_is_the_kernels_and_leaves_files_out(holder: psutil.Process) -> None:
    """One and the same counter, read in two places; a page or two may move while interpreters sleep."""
    assert anonymous_bytes(holder) == pytest.approx(status(holder, "RssAnon"), rel=0.01)
    assert OWN < anonymous_bytes(holder) < OWN + MAPPED
    assert holder.memory_info().rss > OWN + MAPPED


@linux_only
def test_resident_peak_is_the_kernels(holder: psutil.Process) -> None:
    assert resident_peak_bytes(holder.pid) == status(holder, "VmHWM")
    assert resident_peak_bytes(holder.pid) > holder.memory_info().rss + OWN - (1 << 20)
    assert resident_peak_bytes() > 0


def test_elsewhere_all_resident_memory_counts() -> None:
    """As macOS has it, which counts no shared pages."""
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=5, vms=9))
    assert anonymous_bytes(process) == 5


@pytest.mark.parametrize("linux", [pytest.param(True, marks=linux_only), False], ids=["Linux", "elsewhere"])
def test_memory_that_a_part_frees_is_seen(linux: bool) -> None:
    """64 MiB that are there for a moment, on Linux while Python's lock is held: bytes of one value are made in one call, and
    hashed in another. Without that they were gone as soon as the last page was there, and a sample that came late on a busy
    machine had seen some megabytes fewer."""
    with Peak(linux) as peak:
        with peak.watch() as part:
            block = bytes([7]) * (64 << 20)
            if linux:
                hash(block)
                del block
        block = b""
        with peak.watch() as after:
            pass
    assert part.memory_bytes - after.memory_bytes == pytest.approx(64 << 20, rel=0.05)
    if part.resident_bytes is not None and after.resident_bytes is not None:
        assert part.resident_bytes - after.resident_bytes == pytest.approx(64 << 20, rel=0.05)
    assert (peak.method == METHOD_ELSEWHERE) != linux


def test_what_was_seen_before_a_part_is_not_of_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking takes long where psutil walks all pages: another thread may be at it when the part begins."""
    held, looking = [100], threading.Event()

    def memory_full_info() -> SimpleNamespace:
        seen = held[0]
        if threading.current_thread() is not threading.main_thread() and not looking.is_set():
            looking.set()
            time.sleep(0.3)
        return SimpleNamespace(uss=seen, rss=seen)

    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_full_info=memory_full_info))
    with Peak(linux=False) as peak:
        assert looking.wait(60)
        held[0] = 1
        with peak.watch() as part:
            time.sleep(0.5)
    assert (part.memory_bytes, part.resident_bytes) == (1, 1)


def test_without_psutil_it_is_said_what_to_install_but_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.extra.find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed: psutil"):
        Peak(linux=False)
    if LINUX:
        with Peak() as peak, peak.watch() as part:
            pass
        assert part.memory_bytes > 0


@linux_only
def test_a_command_is_watched_from_outside() -> None:
    """What it holds for half a second is sampled five times."""
    code = f"import time; block = bytes([7]) * {OWN}; time.sleep(0.5); print('said')"
    anonymous, resident, said = peak_memory([sys.executable, "-I", "-c", code])
    assert OWN < anonymous < 2 * OWN
    assert anonymous < resident < 3 * OWN
    assert said == "said\n"
