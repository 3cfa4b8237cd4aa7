"""A bundle as model hubs leave it on a disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def hub_cache(bundle: Path, cache: Path, inside: str = "") -> Path:
    """A bundle as a hub's client caches it: every file a link to a blob that is named by its hash; returns its folder."""
    repository = cache / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abc"
    for file in sorted(bundle.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            blob.chmod(0o444)
            link = snapshot / inside / file.relative_to(bundle)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot / inside
