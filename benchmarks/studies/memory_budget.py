"""What a generation takes in memory, sampled from outside, beside what the bundle predicted and what its tier allows.

    flash-deploy build students/mid -o bundle
    python -m benchmarks.studies.memory_budget bundle [BUNDLE ...]

Exits with 1 if a bundle takes more than its tier allows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.studies.command import flash_deploy, inspect
from benchmarks.studies.full_size import peak_memory

IDLE = "import numpy, onnxruntime, tokenizers, time; time.sleep(0.5)"


def main() -> None:
    """Draw from each bundle in a fresh process, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    options = parser.parse_args()
    idle, _, _ = peak_memory([sys.executable, "-c", IDLE])
    print(f"The process before any graph: {idle / 1e6:.0f} MB anonymous.\n")
    print("| bundle | anonymous, peak | predicted | error | resident, peak | tier allows |\n|---|---|---|---|---|---|")
    over = False
    for folder in options.bundles:
        about = inspect(folder)
        predicted, budget = about["peak_memory_bytes"], about["tier_memory_bytes"]
        with tempfile.TemporaryDirectory() as work:
            draw = ["generate", str(folder), "a lighthouse", "--threads", "2", "-o", f"{work}/picture.png"]
            anonymous, resident, _ = peak_memory(flash_deploy(*draw))
        over |= anonymous > budget
        error = f"{predicted / anonymous - 1:+.0%}"
        figures = f"{anonymous / 1e6:.0f} MB | {predicted / 1e6:.0f} MB | {error} | {resident / 1e6:.0f} MB"
        stored = ", ".join(dict.fromkeys(rule["scheme"] for rule in about["profile"]))
        print(f"| {folder.name} ({stored}) | {figures} | {budget / 1e6:.0f} MB |")
    sys.exit(int(over))


if __name__ == "__main__":
    main()
