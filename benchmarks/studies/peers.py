"""A student's bundles beside what others do with the same student, in one interleaved benchmark.

    python -m benchmarks.studies.peers STUDENT --json FILE
    python -m benchmarks.peers.table FILE --into docs/benchmarks.md

Without ``--bundle``, two are built: as the tier ``desktop-cpu`` stores weights, and in fp32. Needs the extras export, openvino
and peers; a peer whose packages are missing is reported absent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.studies.command import flash_deploy

OURS = ("onnxruntime-cpu", "onnxruntime-cpu-kept", "openvino", "openvino-kept")
OTHERS = ("torch", "torch-bf16", "plain-onnxruntime", "plain-onnxruntime-int8", "plain-openvino-nncf")
STORED = {"desktop-cpu": (), "fp32": ("--precision", "fp32")}


def main() -> None:
    """Build, measure and say where the samples are; what fails, fails with its own message and exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--json", type=Path, required=True, help="file for the samples")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a bundle of this student (repeatable)")
    parser.add_argument("--pixels", type=int, default=None, help="height and width of pictures (default: the tier's)")
    parser.add_argument("--ours", action="append", default=[], choices=OURS, help="where bundles run (default: everywhere)")
    parser.add_argument("--peer", action="append", default=[], choices=OTHERS, help="what else is measured (default: all)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.json.resolve().parent) as work:
        bundles = options.bundle or [_build(options.student, Path(work) / name, options.pixels) for name in STORED]
        command = ["bench", *map(str, bundles), "--student", str(options.student), "--json", str(options.json)]
        for target in (*(options.ours or OURS), *(options.peer or OTHERS)):
            command += ["--target", target]
        for name in ("runs", "rounds", "warm_ups", "pictures"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        command += [] if options.threads is None else ["--threads", str(options.threads)]
        _cli(command)


def _build(student: Path, bundle: Path, pixels: int | None) -> Path:
    size = [] if pixels is None else ["--height", str(pixels), "--width", str(pixels)]
    _cli(["build", str(student), "--drop-t5", "--parity", "never", *STORED[bundle.name], *size, "-o", str(bundle)])
    return bundle


def _cli(arguments: list[str]) -> None:
    if code := subprocess.run(flash_deploy(*arguments), check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    main()
