"""Folders that appear whole, and folders with names that others can foresee."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantization.errors import Complaint
from quantization.files import WritingError, draft_name, is_draft_of, sync, writing


@contextlib.contextmanager
def new_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """A draft folder that becomes ``target`` at the end, and leaves nothing if anything fails before.

    Args:
        target: where to; folders above it are made.
        replace: an older folder there is replaced.

    Raises:
        WritingError: the system refuses it, or something has come to that place.
    """
    new_parents = [folder for folder in target.parents if not os.path.lexists(folder)]  # innermost first
    draft = draft_name(target)
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_left_behind(target)
            draft.mkdir()
            with held(draft):
                yield draft
                _sync_tree(draft)
                put_in_place(draft, target, replace)
    except BaseException:
        remove_tree(draft)
        remove_empty(new_parents)
        raise


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a draft, wherever it is renamed to, so that others see that it is in work; that ends with the process."""
    descriptor = _locked(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_left_behind(target: Path) -> None:
    """Remove drafts of this target that nobody holds: their processes were killed."""
    with contextlib.suppress(OSError):
        for place in target.parent.iterdir():
            if is_draft_of(place, target) and place.is_dir() and not place.is_symlink():
                descriptor = _locked(place)
                if descriptor is not None:
                    os.close(descriptor)
                    remove_tree(place)


def _locked(folder: Path) -> int | None:
    """A descriptor that locks a folder; none where another process has it, or the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def real_place(output: Path) -> Path:
    """Where a folder really goes: a link to a folder is followed, one to nothing is not.

    Raises:
        WritingError: it is a link that leads nowhere.
    """
    if output.is_symlink() and not output.exists():
        complaint = Complaint(str(output), "is a link that leads nowhere", got=str(output.readlink()))
        raise WritingError(f"{output.name} cannot be written.", [complaint], "remove the link, or give another folder")
    return Path(os.path.realpath(output))


def put_in_place(draft: Path, target: Path, replace: bool) -> None:
    """Rename a folder to its place; an older one there is exchanged for it, so that there is a whole one at every moment.

    Where the file system cannot exchange, there is none for a moment, and the older one comes back if that moment goes wrong.

    Raises:
        WritingError: something is there, and is not to be replaced.
    """
    if os.path.lexists(target) and not replace:
        raise WritingError(f"{target} has come to be meanwhile.", remedy="move it away, or give another folder")
    if not os.path.lexists(target):
        draft.rename(target)
    elif _exchange(draft, target):
        remove_tree(draft)
    else:
        old = draft_name(target)
        target.rename(old)
        try:
            draft.rename(target)
        except BaseException:
            old.rename(target)
            raise
        remove_tree(old)
    sync(target.parent)


def claim_folder(folder: Path) -> None:
    """Make a folder, or go on in it, under a name that others can foresee.

    Raises:
        WritingError: it is a link or no folder, or another user has put it there.
    """
    new_parents = [place for place in folder.parents if not os.path.lexists(place)]  # innermost first
    try:
        with writing(folder):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
            status, above = os.lstat(folder), folder.parent.stat()
    except BaseException:
        remove_empty(new_parents)
        raise
    problem = ""
    if stat.S_ISLNK(status.st_mode):
        problem = "is a link"
    elif not stat.S_ISDIR(status.st_mode):
        problem = "is no folder"
    elif hasattr(os, "geteuid") and above.st_mode & 0o022 and status.st_uid not in (os.geteuid(), above.st_uid):
        problem = "belongs to another user, in a folder that others write to"
    if problem:
        raise WritingError(f"{folder.name} cannot be worked in.", [Complaint(str(folder), problem)], "remove it")


def remove_tree(folder: Path) -> None:
    """Remove a folder, also one that was made read-only; a link goes, and what it leads to stays."""
    if folder.is_symlink():
        folder.unlink()
        return
    with contextlib.suppress(OSError):
        _let_in(folder)
        for root, names, _ in os.walk(folder):
            for name in names:
                _let_in(Path(root, name))
    shutil.rmtree(folder, ignore_errors=True)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that were made on the way, innermost first; what has come into them since keeps them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _let_in(folder: Path) -> None:
    if not folder.is_symlink() and (mode := folder.stat().st_mode) & stat.S_IRWXU != stat.S_IRWXU:
        folder.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for place in (*(Path(root, name) for name in names), Path(root)):
            if not place.is_symlink():
                sync(place)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; whether the system and the file system could."""
    try:
        import ctypes  # which the smallest Pythons do without

        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(os.fsencode(one), os.fsencode(other), 2) == 0)  # RENAME_SWAP
        return bool(libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0)  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, ImportError):
        return False
