"""Models in a hub client's cache: by their id, by the cache's folder, and what a snapshot is called.

The cache of huggingface_hub keeps ``models--OWNER--NAME/snapshots/COMMIT`` and, for branches and tags,
``models--OWNER--NAME/refs/NAME`` with a commit in it. Nothing is downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from exporters.errors import Complaint, StudentError

_ID = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?")
_MODEL = "models--"
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def hub_cache() -> Path:
    """Where the hub's client keeps what it downloads, by the environment that it reads."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if value := os.environ.get(variable):
            return Path(value).expanduser() / below
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def located(path: Path) -> Path:
    """Where something is: an existing path wins, a model's folder in the cache too; then ``owner/name[@revision]`` there.

    Raises:
        StudentError: the id is not in the cache, or the folder does not say which of its snapshots is meant.
    """
    if path.exists():
        model = path.parent if path.name == "snapshots" else path
        is_model = model.name.startswith(_MODEL) and (model / "snapshots").is_dir()
        return _snapshot(model, "main", str(path)) if is_model else path
    match = _ID.fullmatch(path.as_posix())
    if match is None or path.is_absolute() or path.parent.exists():
        return path
    owner, name, revision = match[1], match[2], match[3] or "main"
    model = hub_cache() / f"{_MODEL}{owner}--{name}"
    if not model.is_dir():
        what = "is not here; it looks like a model hub's id, and nothing is downloaded"
        complaint = Complaint(str(path), "is neither a path nor in the hub's cache", str(model))
        remedy = f"download it (`hf download {owner}/{name}`), or give a folder"
        raise StudentError(f"{path} {what}.", [complaint], remedy, what)
    return _snapshot(model, revision, str(path))


def _snapshot(model: Path, revision: str, given: str) -> Path:
    """The snapshot of a revision: a branch, a tag, a commit's first digits; of ``main`` the only one where no reference is."""
    snapshots = sorted(child for child in (model / "snapshots").glob("*") if child.is_dir())
    reference = model / "refs" / revision
    if ".." not in Path(revision).parts and reference.is_file():
        commit = reference.read_text("utf-8", errors="replace").strip()
        named = [child for child in snapshots if child.name == commit]
    else:
        named = [child for child in snapshots if _COMMIT.fullmatch(revision) and child.name.startswith(revision)]
        named = named or (snapshots if revision == "main" else [])
    if len(named) == 1:
        return named[0]
    there = ", ".join(child.name for child in snapshots[:5]) or "none"
    complaint = Complaint(given, f"revision {revision} is not one snapshot of the cache", "one", there)
    remedy = "give one of the snapshots" if snapshots else "download it again: the cache holds no snapshot of it"
    raise StudentError(f"{given} does not say which snapshot is meant.", [complaint], remedy)


def called(path: Path) -> str:
    """What a student is called: its folder's or file's name; of a snapshot in a cache the model's.

    >>> called(Path("/cache/models--stabilityai--sd3.5-large-turbo/snapshots/0123abc")), called(Path("/a/student"))
    ('sd3.5-large-turbo', 'student')
    """
    place = path.absolute()
    home = place.parent if place.suffix == ".safetensors" else place
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith(_MODEL):
        return home.parent.parent.name.rpartition("--")[2]
    return path.resolve().name
