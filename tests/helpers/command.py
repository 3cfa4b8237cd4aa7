"""The command line, as users start it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def flash_deploy(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, stdin=subprocess.DEVNULL)


def flash_deploy_bytes(stdin: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """The same, fed from standard input; what it writes is not taken for text."""
    command = [sys.executable, "-m", "deploy.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, input=stdin)
