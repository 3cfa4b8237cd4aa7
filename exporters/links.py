"""Where links lead: a file that is reached through a folder need not be the folder's own. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path


def is_own(file: Path, folder: Path) -> bool:
    """Whether a file is in a folder, links followed; or where the folder is in a hub's cache, among its content.

    Hub caches keep ``blobs/HASH`` beside ``snapshots/REVISION``, whose files are links to them.
    """
    home, target = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    caches = (place.parent.parent for place in (home, *home.parents) if place.parent.name == "snapshots")
    return any(target.is_relative_to(place) for place in (home, *(cache / "blobs" for cache in caches)))
