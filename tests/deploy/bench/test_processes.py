"""Ctrl-C in the middle of a measurement: what its process has begun it also ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MEASURING = """
import pathlib, signal, sys, time
from deploy.interrupts import uninterrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = pathlib.Path(sys.argv[1])
try:
    folder.mkdir()  # a browser's profile; what waits for it may interrupt at once
    time.sleep(60)
finally:
    with uninterrupted():  # as Chromium is closed: slower than subprocess.run waits
        time.sleep(1)
        folder.rmdir()
"""
BENCH = """
import signal, sys
from types import SimpleNamespace
from deploy.bench.processes import Job, measure
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the suite in the background
target = SimpleNamespace(arguments=lambda assignment: ["-c", sys.argv[1], sys.argv[2]])
measure(Job("bundle", "browser-wasm", target, None, ""), 1, 1, None)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("all_of_them", [False, True], ids=["one process", "as a terminal does"])
def test_an_interrupted_measurement_cleans_up(all_of_them: bool, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    command = [sys.executable, "-c", BENCH, MEASURING, str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not folder.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert folder.exists()
        (os.killpg if all_of_them else os.kill)(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said
    assert not folder.exists()
