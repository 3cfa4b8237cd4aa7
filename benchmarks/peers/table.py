"""The table of a benchmark with peers, from its samples, for docs/benchmarks.md.

python -m benchmarks.peers.table FILE [--into docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.results.comparison import difference
from benchmarks.results.record import Entry, Results, Series, load_results
from benchmarks.results.statistics import summarize
from benchmarks.results.tables import UNKNOWN, db, mb
from quantization.errors import Complaint, InputError
from quantization.files import write_text

BEGIN, END = "<!-- peers begin -->", "<!-- peers end -->"
BASE = "torch"
WORDS = {
    "torch": "diffusers, torch fp32",
    "torch-bf16": "diffusers, torch bf16",
    "plain-onnxruntime": "plain export, onnxruntime fp32",
    "plain-onnxruntime-int8": "plain export, onnxruntime dynamic int8",
    "plain-openvino-nncf": "plain export, OpenVINO, NNCF int8",
}
HEADS = (
    "",
    "CPU time",
    "wall time (95 %)",
    "first picture, wall",
    "peak memory, anonymous",
    "resident",
    "on disk",
    "latents",
    "PSNR, mean",
    "SSIM, mean",
)


def table(results: Results) -> str:
    """Markdown: ratios to diffusers in fp32, memory in MB, quality against it.

    Raises:
        InputError: diffusers in fp32 was not measured.
    """
    there = [entry for entry in results.entries if entry.measured is not None]
    base = next((entry for entry in there if entry.target == BASE), None)
    if base is None or base.measured is None:
        raise InputError("There is no table of peers.", [Complaint("FILE", "was not measured", BASE)])
    rows = [_row(entry, base, results.rounds) for entry in there]
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    about, pictures = base.measured.metadata, len(base.quality.pictures) if base.quality else 0
    facts = next((entry.facts for entry in there if entry.facts is not None), None)
    size = "" if facts is None else f"{facts.width} x {facts.height} px, {facts.steps} steps, "
    warm = len(base.measured.picture.warm.wall_ms)
    lines += ["", f"{size}{about['cpu']}, {about['cpus']} CPUs, {about['threads']} threads; {warm} warm pictures of each in "]
    lines[-1] += f"{results.rounds} interleaved rounds, quality of {pictures}; {results.measured_at}, commit {results.commit}."
    lines += [f"Not measured: {entry.bundle} on {entry.target}: {entry.absent}." for entry in results.entries if entry.absent]
    return "\n".join(lines)


def into(text: str, markdown: str) -> str:
    """A page with the table in its place.

    Raises:
        InputError: the page has no place for it.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError("The page has no place for the table.", [Complaint("--into", "lacks", f"{BEGIN} and {END}")])
    return f"{before}{BEGIN}\n\n{markdown}\n\n{END}{after}"


def _row(entry: Entry, base: Entry, rounds: int) -> tuple[str, ...]:
    import numpy as np

    assert entry.measured is not None
    assert base.measured is not None
    ours, theirs = entry.measured.picture, base.measured.picture
    wall = difference(theirs.warm, ours.warm, rounds, rounds, np.random.default_rng(0))
    quality = entry.quality
    itself = entry is base
    return (
        WORDS.get(entry.target, f"bundle {entry.bundle}, {entry.target}"),
        f"{_median_cpu(ours.warm) / _median_cpu(theirs.warm):.2f}",
        "1.00" if itself else f"{wall.ratio:.2f} ({wall.low:.2f} to {wall.high:.2f})",
        f"{summarize(ours.first.wall_ms).median / summarize(theirs.first.wall_ms).median:.2f}",
        mb(ours.peak_memory_bytes),
        mb(ours.peak_resident_bytes),
        mb(entry.bytes_on_disk),
        *(
            (UNKNOWN,) * 3
            if quality is None or itself
            else (db(quality.latent_db or 0), db(quality.psnr_db), f"{quality.ssim:.4f}")
        ),
    )


def _median_cpu(series: Series) -> float:
    return summarize(series.cpu_ms).median


def main() -> None:
    """Print the table, or put it into a page; bad input is told and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--into", type=Path, default=None, help=f"a Markdown page with {BEGIN} and {END}")
    options = parser.parse_args()
    try:
        markdown = table(load_results(options.file))
        if options.into is None:
            print(markdown)
        else:
            write_text(options.into, into(options.into.read_text("utf-8"), markdown))
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
