"""Memory and time of building a bundle, sampled from outside, beside the time that copying the student takes.

    flash-deploy make-student --preset full --no-t5 -o students/full
    python -m benchmarks.studies.full_size students/full --precision fp16
    python -m benchmarks.studies.full_size students/full --format coreml --tier phone

What follows the student is handed on to ``flash-deploy build``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.measure.memory import anonymous_bytes, resident_peak_bytes
from benchmarks.studies.command import flash_deploy

SAMPLE_SECONDS = 0.1


def peak_memory(command: list[str]) -> tuple[int, int, str]:
    """Run a command: its peak anonymous memory and peak resident memory in bytes, and what it printed. Linux only.

    Mapped weight files count as resident, not as anonymous: the kernel drops their pages when others need them.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        watched, anonymous, resident = psutil.Process(process.pid), 0, 0
        while process.poll() is None:
            with contextlib.suppress(psutil.Error, OSError):  # the process has just ended
                anonymous = max(anonymous, anonymous_bytes(watched))
                resident = max(resident, resident_peak_bytes(process.pid))
            time.sleep(SAMPLE_SECONDS)
        printed = process.stdout.read()  # a few lines: they fit the pipe
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return anonymous, resident, printed


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds to copy a folder and flush it to disk."""
    began = time.perf_counter()
    shutil.copytree(source, target)
    os.sync()
    return time.perf_counter() - began


def main() -> None:
    """Copy, build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    options, build = parser.parse_known_args()
    size = sum(file.stat().st_size for file in options.student.rglob("*") if file.is_file())
    with tempfile.TemporaryDirectory(dir=options.student.resolve().parent) as work:
        copied = copy_seconds(options.student, Path(work) / "copy")
        shutil.rmtree(Path(work) / "copy")
        output = Path(work) / "bundle"
        command = flash_deploy("build", options.student, "-o", output, *build)
        anonymous, resident, printed = peak_memory(command)
        built = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    stages = {kind: float(seconds) for kind, seconds in re.findall(r"(\w+) ([\d.]+) s", printed.splitlines()[-1].split(": ")[1])}
    print("| | |\n|---|---|")
    print(f"| student on disk | {size / 1e9:.2f} GB |")
    print(f"| bundle on disk, {' '.join(build) or 'by default'} | {built / 1e9:.2f} GB |")
    print(f"| peak anonymous memory of the build | {anonymous / 1e9:.2f} GB |")
    print(f"| peak resident memory (mapped weights included) | {resident / 1e9:.2f} GB |")
    for kind, seconds in stages.items():
        print(f"| {kind}, over the time of copying the student | {seconds / copied:.2f} |")
    rest = sum(stages.values()) - stages["tracing"]
    print(f"| all but tracing, over the time of copying the student | {rest / copied:.2f} |")
    print(f"| copying the student, on this machine | {copied:.0f} s |")


if __name__ == "__main__":
    main()
