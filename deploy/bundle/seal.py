"""Make a place for a bundle, put it together there, and seal it. Needs neither torch nor onnx, as what reads it does."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from deploy.bundle.folder import BOOKKEEPING, HISTORY, LOCK, PAGE, PICTURES, Bundle, files_in, find_strangers, open_bundle
from deploy.bundle.manifest import NAME, FileRecord, Manifest, is_bundle, parse_manifest
from deploy.errors import BundleError, Complaint, InputError
from exporters.hashing import hash_file
from quantization.files import draft_name, write_bytes
from quantization.folders import claim_folder, held, put_in_place, remove_left_behind


class BundleBusyError(BundleError):
    """Another process is building this bundle."""


def check_place(output: Path, force: bool) -> None:
    """Whether a bundle can be made there: nothing is there, or, with ``force``, an older bundle and nothing else.

    Raises:
        InputError: something is there that would be lost, or the place cannot be.
    """
    try:
        there = output.exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise InputError("The bundle cannot be written.", [Complaint(str(output), error.strerror or str(error))]) from error
    if not there:
        return
    if not force:
        raise InputError(f"{output} is there already.", remedy="give another folder, or --force to replace it")
    if output.is_dir() and not any(output.iterdir()):
        return
    if not is_bundle(output):
        raise InputError(f"{output} is not a bundle and is not replaced.", remedy="give another folder")
    if yours := _yours(output):
        complaints = [Complaint(str(output / path), "not a file of this bundle") for path in yours]
        raise InputError(f"{output} holds more than a bundle and is not replaced.", complaints, "move these files away")


def _yours(folder: Path) -> list[str]:
    """What would be lost with a bundle: all that it does not list but hidden files and downloaders' bookkeeping.

    A bundle that is newer, or damaged, may be replaced too: what it lists is its own. Of one whose list cannot be read, all that
    is known is that neither a page nor a history is its own.
    """
    try:
        content = json.loads((folder / NAME).read_bytes())
        listed = {NAME, LOCK, *(str(record["path"]) for record in content["files"])}
    except (ValueError, LookupError, TypeError, RecursionError):
        listed = None
    lost: dict[str, None] = {}
    for path in (file.relative_to(folder) for file in files_in(folder)):
        top, whole = path.parts[0], path.as_posix()
        if top in (*HISTORY, PICTURES):
            lost[top] = None
        elif listed is None:
            lost |= {whole: None} if whole == PAGE else {}
        elif whole not in listed and top not in BOOKKEEPING and not path.name.startswith("."):
            lost[whole] = None
    return list(lost)


def remove_strangers(partial: Path, manifest: Manifest) -> None:
    """Remove whatever an earlier build of something else left in a partial bundle."""
    for file in find_strangers(partial, manifest):
        file.unlink()
    for folder in sorted(partial.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def record_file(folder: Path, path: str) -> FileRecord:
    """Describe a file that was written, and flush it to disk."""
    file = folder / path
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    return FileRecord(path=path, size_bytes=file.stat().st_size, sha256=hash_file(file))


def partial_folder(target: Path) -> Path:
    """Where a bundle is put together: a hidden sibling, so that the rename stays on one file system."""
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def locked(partial: Path) -> Iterator[None]:
    """Hold a partial bundle against a second build; the lock dies with the process.

    Raises:
        BundleBusyError: another process is building this bundle.
    """
    try:
        import fcntl
    except ImportError:  # Windows: bundles run there, and are built elsewhere
        raise BundleError("Bundles are built on Linux or macOS.", remedy="build there and copy the folder") from None
    claim_folder(partial)  # what is not this build's is removed from the folder at the end
    file = partial / LOCK
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = file.exists() and os.path.samestat(file.stat(), os.fstat(stream.fileno()))  # else another has sealed meanwhile
        except OSError:
            ours = False
        if not ours:
            raise BundleBusyError(
                f"Another process is building in {partial}.", remedy="wait for it, or build to another folder"
            ) from None
        for path in partial.rglob("*"):
            if path.is_symlink():  # nothing is ever written through one
                path.unlink()
        yield


def seal(partial: Path, target: Path, manifest: Manifest, force: bool = False) -> Bundle:
    """Write the manifest and move the partial bundle to its place in one step; with ``force`` an older bundle is replaced.

    Raises:
        BundleError: something has come to that place since the build began.
    """
    if os.path.lexists(target) and not force:
        raise BundleError(f"{target} has come to be while the bundle was built.", remedy="move it away, or build with --force")
    content = manifest.to_json()
    parse_manifest(content, partial / NAME)  # before the rename: a bundle that cannot be read must not take its place
    write_bytes(partial / NAME, content)
    remove_left_behind(target)
    whole = draft_name(target)  # an older bundle must not come to the partial one's place: the next build would go on in it
    with held(partial):
        partial.rename(whole)
        try:
            put_in_place(whole, target, force)
        except BaseException:
            if not (target / LOCK).exists():  # it has not come to its place
                whole.rename(partial)
            raise
    (target / LOCK).unlink(missing_ok=True)  # not before: whoever comes meanwhile must find it held
    return open_bundle(target)
