"""A bundle's files as runtimes want them: each a file of its own name, in one folder.

In a hub's cache a bundle's files are links to blobs that are named by their hash. onnxruntime looks for a graph's weights beside
the file that a link leads to, and OpenVINO and Core ML's tools refuse links. They are given a private folder in which the
blobs have the bundle's names: hard links, or copies where the file systems differ. It goes as soon as the graph is loaded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from deploy.errors import BundleError, Complaint, InputError
from exporters.links import is_own

# Smaller files are copied: Core ML's tools write a package's table of contents when they load it, and would write the blob.
LINKED_BYTES = 1 << 20
REMEDY = "free some space, or let TMPDIR name a folder on the bundle's own file system"


@contextlib.contextmanager
def plain_files(folder: Path, paths: Iterable[str]) -> Iterator[Path]:
    """A folder in which these files are files: the bundle's own where none of them is reached through a link.

    Args:
        folder: the bundle's.
        paths: in the bundle.

    Raises:
        BundleError: a file leads outside of the bundle.
        InputError: there is no room for copies.
    """
    home = os.path.realpath(folder)
    real = {path: Path(os.path.realpath(folder / path)) for path in paths}
    if outside := [path for path in real if not is_own(folder / path, folder)]:
        raise BundleError(f"{folder} is damaged.", [Complaint(path, "leads outside the bundle") for path in outside])
    if all(target == Path(home, path) for path, target in real.items()):
        yield folder
        return
    with contextlib.ExitStack() as stack:
        yield _private(stack, real)


def _private(stack: contextlib.ExitStack, real: Mapping[str, Path]) -> Path:
    """A private folder with the files: where they can be linked, else in the system's own with copies."""
    caches = dict.fromkeys(file.parent.parent for file in real.values() if file.parent.name == "blobs")
    for above in (None, *caches):
        with contextlib.suppress(OSError), contextlib.ExitStack() as attempt:
            folder = Path(attempt.enter_context(_temporary(above)))
            _fill(folder, real, linked=True)
            stack.push(attempt.pop_all())
            return folder
    folder = Path(stack.enter_context(_temporary(None)))
    try:
        _fill(folder, real, linked=False)
    except OSError as error:
        needed = sum(file.stat().st_size for file in real.values())
        got = f"{shutil.disk_usage(folder).free / 1e6:.2f} MB free"
        complaint = Complaint(str(folder.parent), error.strerror or str(error), f"{needed / 1e6:.2f} MB", got)
        raise InputError("The bundle's files are links, and cannot be copied for the runtime.", [complaint], REMEDY) from error
    return folder


def _temporary(above: Path | None) -> tempfile.TemporaryDirectory[str]:
    """Readable by this user alone; gone at the end, whatever ends it."""
    return tempfile.TemporaryDirectory(prefix="flash-deploy-", dir=above, ignore_cleanup_errors=True)


def _fill(folder: Path, real: Mapping[str, Path], linked: bool) -> None:
    for path, file in real.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if linked and file.stat().st_size >= LINKED_BYTES:
            target.hardlink_to(file)
        else:
            shutil.copyfile(file, target)
