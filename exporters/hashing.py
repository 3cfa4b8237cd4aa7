"""File content by hash; imports nothing heavy, so that the runtime can use it too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path


def hash_file(file: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's content, in hexadecimal, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            if progress:
                progress(len(piece))
    return digest.hexdigest()
