"""Whether the memory that `bench` reports is what another process sees from outside.

    python -m benchmarks.studies.memory_agreement BUNDLE [BUNDLE ...] [--runtime openvino]

Each part (the picture, then each graph) is watched twice: by the runner itself, which reports it, and from here, which samples
``/proc/PID/smaps_rollup`` (Anonymous and Rss). A second run, of pictures alone, is compared with what ``wait4`` says of it: that
is the maximum resident set size of ``/usr/bin/time -v``. Linux only. Exits with 1 where a figure is off by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.studies.command import runner

SAMPLE_SECONDS = 0.003
ALLOWED = 0.05
HEADS = ("bundle", "part", "anonymous: bench", "outside", "off by", "resident: bench", "outside", "off by", "outside is")
Sample = tuple[float, int, int]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|")
    worst = 0.0
    for bundle in options.bundles:
        command = runner(bundle, "--runtime", options.runtime, "--threads", options.threads, "--runs", 2)
        measured, parts, samples = watched(command)
        for name, (began, ended) in parts.items():
            ours = measured["picture"] if name == "picture" else measured["graphs"][name]
            inside = [sample for sample in samples if began <= sample[0] <= ended]
            if not inside:
                print(f"| {bundle.name} | {name} | too short to be sampled from outside |" + " |" * 6)
                continue
            peaks = (max(sample[1] for sample in inside), max(sample[2] for sample in inside))
            own = (ours["peak_memory_bytes"], ours["peak_resident_bytes"])
            worst = max(worst, *_tell(bundle.name, name, own, peaks, f"smaps_rollup, {len(inside)} samples"))
        ours, maximum = _maximum([*command, "--no-graphs"])
        worst = max(worst, *_tell(bundle.name, "pictures alone", (None, ours), (None, maximum), "wait4, as /usr/bin/time -v"))
    print(f"\nLargest difference: {worst:.1%}; allowed: {ALLOWED:.0%}.")
    sys.exit(int(worst > ALLOWED))


def watched(command: list[str]) -> tuple[dict[str, Any], dict[str, tuple[float, float]], list[Sample]]:
    """Run the runner and sample it: what it reports, when each part was, and (time, Anonymous, Rss) again and again, in bytes."""
    samples: list[Sample] = []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as told:
        with subprocess.Popen([*command, "--parts"], stdout=out, stderr=told) as process:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup")
            while process.poll() is None:
                if (sample := _rollup(rollup)) is not None:
                    samples.append((time.monotonic(), *sample))
                time.sleep(SAMPLE_SECONDS)
        out.seek(0)
        told.seek(0)
        said = told.read()
        if process.returncode:
            sys.exit(said)
        parts = {name: (began, ended) for name, (began, ended) in json.loads(said.splitlines()[-1]).items()}
        return json.loads(out.read()), parts, samples


def _rollup(file: Path) -> tuple[int, int] | None:
    """Anonymous and resident memory, in bytes; none once the process has ended.

    psutil's ``memory_maps`` adds the same up from ``smaps``, in more than twice the time, in which it holds the process up.
    """
    try:
        fields = dict(line.split(":", 1) for line in file.read_text("ascii").splitlines()[1:])
        return tuple(1024 * int(fields[name].split()[0]) for name in ("Anonymous", "Rss"))  # type: ignore[return-value]
    except (OSError, KeyError):
        return None


def _maximum(command: list[str]) -> tuple[int, int]:
    """Peak resident memory of pictures alone: as the runner reports it, and as the kernel tells its parent."""
    with tempfile.TemporaryFile("w+") as out:
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1)])
        _, status, usage = os.wait4(pid, 0)
        if status:
            sys.exit(os.waitstatus_to_exitcode(status))
        out.seek(0)
        return json.load(out)["picture"]["peak_resident_bytes"], 1024 * usage.ru_maxrss


def _tell(
    bundle: str, part: str, ours: tuple[int | None, int | None], outside: tuple[int | None, int | None], how: str
) -> list[float]:
    """Print one row; returns how far apart both are, as shares."""
    cells, shares = [], []
    for one, other in zip(ours, outside, strict=True):
        if one is None or other is None:
            cells += ["-"] * 3
            continue
        shares.append(abs(one / other - 1))
        cells += [f"{one / 1e6:.1f} MB", f"{other / 1e6:.1f} MB", f"{one / other - 1:+.1%}"]
    print(f"| {bundle} | {part} | {' | '.join(cells)} | {how} |", flush=True)
    return shares


if __name__ == "__main__":
    main()
