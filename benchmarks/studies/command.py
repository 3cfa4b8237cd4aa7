"""The one place where benchmarks start the packages above them: the command line, as a user runs it.

Imports go one way, and studies measure whole commands: they are processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def flash_deploy(*arguments: object) -> list[str]:
    """The command line's own command with these arguments."""
    return [sys.executable, "-m", "deploy.cli", *map(str, arguments)]


def runner(*arguments: object) -> list[str]:
    """What ``bench`` starts for each bundle."""
    return [sys.executable, "-m", "deploy.bench.runner", *map(str, arguments)]


def build(*arguments: object) -> None:
    """Build a bundle, quietly.

    Raises:
        subprocess.CalledProcessError: it failed; its message is on stderr.
    """
    subprocess.run(flash_deploy("build", *arguments), check=True, stdout=subprocess.DEVNULL)


def inspect(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself (``flash-deploy inspect --json``)."""
    done = subprocess.run(flash_deploy("inspect", folder, "--json"), capture_output=True, text=True, check=True)
    about: dict[str, Any] = json.loads(done.stdout)
    return about


def manifest(folder: Path) -> dict[str, Any]:
    """A bundle's manifest (docs/formats.md)."""
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return content
