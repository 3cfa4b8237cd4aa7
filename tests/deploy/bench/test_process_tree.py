from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.bench.process_tree import ProcessTree

CHILD = """
import time
block, end = bytearray(64 << 20), time.process_time() + 0.3
while time.process_time() < end:
    pass
"""
PARENT = f"import subprocess, sys; print(flush=True); sys.stdin.readline(); subprocess.run([sys.executable, '-c', {CHILD!r}])"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_children_count() -> None:
    """A child that holds 64 MiB and is busy for 0.3 s; its parent sleeps. Clock ticks are 10 ms."""
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        tree = ProcessTree(process.pid)
        before = tree.cpu_ms()
        assert before is not None
        with tree.watch() as peak:
            process.stdin.write("\n")
            process.stdin.flush()
            spent = 0.0
            while process.poll() is None:
                spent = max(spent, (tree.cpu_ms() or 0.0) - before)
                time.sleep(0.005)
    assert peak.memory_bytes is not None
    assert peak.memory_bytes > 64 << 20
    assert spent >= 200


def test_elsewhere_nothing_is_known() -> None:
    tree = ProcessTree(2**22 + 1)  # above the largest process id
    assert tree.cpu_ms() is None
    assert tree.method.startswith("not available")
    with tree.watch() as peak:
        pass
    assert peak.memory_bytes is None
