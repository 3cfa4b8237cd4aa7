"""Run every command of the documentation as it is written.

    python -m tests.docs_commands [PAGE ...]

Each page has a temporary folder of its own in which its unmarked ``sh`` blocks are run in order, and its unmarked ``python``
blocks; a block whose first line names a file (``# draw.py``) is written to that file instead. Students are the built-in one. The
first block that fails ends the run. Blocks under a mark (``<!-- needs: a phone -->``) are counted and left out. Examples with
``>>>`` are a test's to run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.docs.pages import ROOT, Block, Page, pages

SHELL = ["bash", "-euo", "pipefail", "-c"]
INTERPRETERS = {"sh": SHELL, "python": [sys.executable, "-c"]}
LONGEST_S = 1800


def main() -> None:
    """Run the pages that are named, or all; exit with 1 at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="Markdown files; default: README.md and all of docs/")
    wanted = {path.resolve() for path in parser.parse_args().pages}
    existing = {page.path for page in pages()}
    if strangers := wanted - existing:
        parser.error(f"not a page: {', '.join(map(str, strangers))}")
    counts = [run_page(page) for page in pages() if not wanted or page.path in wanted]
    ran, left_out = (sum(column) for column in zip(*counts, strict=True))
    print(f"{ran} blocks ran, {left_out} need what is not here")


def run_page(page: Page) -> tuple[int, int]:
    """Run a page's blocks in a folder of their own.

    Returns:
        How many ran, and how many were left out for their marks.

    Raises:
        SystemExit: a block failed.
    """
    runnable = [block for block in page.blocks if block.language in INTERPRETERS and not block.text.startswith(">>>")]
    ready = [block for block in runnable if not block.needs]
    with tempfile.TemporaryDirectory(prefix="flash-deploy-docs-") as folder:
        for block in ready:
            if block.file_name:
                Path(folder, block.file_name).write_text(block.text, "utf-8")
            else:
                _run(block, folder)
    return len(ready), len(runnable) - len(ready)


def _run(block: Block, folder: str) -> None:
    print(f"{block.where}\n{_indented(block.text)}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [*INTERPRETERS[block.language], block.text],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LONGEST_S,
    )
    if done.returncode:
        print(_indented(done.stdout))
        raise SystemExit(f"{block.where}: exit code {done.returncode}")
    print(f"  done in {time.monotonic() - began:.0f} s", flush=True)


def _environment() -> dict[str, str]:
    """The commands of the environment that this runs in, and the packages of this checkout."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


if __name__ == "__main__":
    main()
