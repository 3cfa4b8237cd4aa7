from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.measure.memory import anonymous_bytes
from deploy.bench.process_tree import ProcessTree
from deploy.errors import InputError

CHILD = """
import sys, time
block, end = bytearray(64 << 20), time.process_time() + 0.3
while time.process_time() < end:
    pass
print(flush=True)
sys.stdin.readline()
"""
PARENT = f"import subprocess, sys; print(flush=True); sys.stdin.readline(); subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_children_count() -> None:
    """A child that holds 64 MiB and was busy for 0.3 s; its parent sleeps.

    User and system time are told in whole ticks of 10 ms: less than 20 ms of the 300 are missing.
    """
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        tree = ProcessTree(process.pid)
        before = tree.cpu_ms()
        with tree.watch() as peak:
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()  # it has been busy, and waits
            spent = tree.cpu_ms() - before
            deadline = time.monotonic() + 60
            while (peak.memory_bytes or 0) <= 64 << 20 and time.monotonic() < deadline:
                time.sleep(0.005)
        process.communicate("\n")
    assert peak.memory_bytes is not None
    assert peak.memory_bytes > 64 << 20
    assert spent >= 280
    assert tree.cpu_ms() == 0  # nobody is left


def test_memory_is_that_of_all_processes_together() -> None:
    """Two that sleep, each with 32 MiB of its own: what the kernel says of both."""
    code = "import sys; block = bytearray(32 << 20); print(flush=True); sys.stdin.read()"
    start = f"child = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE); child.stdout.readline()"
    parent = f"import subprocess, sys; {start}; {code}"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tree = ProcessTree(process.pid)
        both = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        expected = sum(anonymous_bytes(one) for one in both)
        with tree.watch() as peak:
            while peak.memory_bytes is None:
                time.sleep(0.005)
        process.communicate("")
    assert len(both) == 2
    assert peak.memory_bytes == pytest.approx(expected, rel=0.01)
    assert peak.memory_bytes > 64 << 20


def test_there_is_no_such_process() -> None:
    with pytest.raises(psutil.NoSuchProcess):
        ProcessTree(2**22 + 1)  # above the largest process id


def test_without_psutil_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.extra.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: psutil.\nWhat to do: pip install 'flash-deploy\[bench\]'"):
        ProcessTree(1)
