"""Writing files that others can see: whole or not at all, and never where a link leads.

A file is written to a draft beside it whose name cannot be foreseen, opened exclusively, flushed to the disk and renamed. A
link at the target's place is replaced; what it leads to stays as it is. Two writers of one target never meet: the last one's
file is there, whole.

Devices and pipes of this process (``/dev/stdout``, ``/dev/fd/63``) are written to as they are.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import stat
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from quantization.errors import Complaint, InputError

REMEDY = "free some space or write elsewhere"
_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_APPENDING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
_STREAMS = re.compile(r"/dev|/dev/fd|/proc/[^/]+/fd")

DRAFTS = re.compile(r"\..+\.(?:[0-9a-f]{16}\.)?partial")
"""Names of what is being written, in a folder of one's own; :func:`draft_name`'s are among them."""

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What numpy raises of arrays that are missing, cut short or none."""


def check_regular(file: Path) -> None:
    """Refuse what is no file: a pipe would be waited for, a device read for ever.

    Raises:
        OSError: there is something else of that name; what is missing is left to whoever opens it.
    """
    if file.exists() and not file.is_file():
        raise OSError("is not a file")


class WritingError(InputError):
    """Something cannot be written."""


def writing_error(target: Path, error: OSError) -> WritingError:
    """What the system said, as a complaint about what was to be written."""
    got = error.strerror or str(error) or type(error).__name__
    return WritingError(f"{target.name} cannot be written.", [Complaint(str(target), got)], REMEDY)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """What the system refuses in here comes out as a complaint about ``target``, unless it names a file elsewhere.

    Raises:
        WritingError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(target.parent):
            raise
        raise writing_error(target, error) from error


def draft_name(target: Path) -> Path:
    """A hidden sibling whose name nobody can foresee, on the same file system; never longer than a name may be."""
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.partial")


def is_draft_of(place: Path, target: Path) -> bool:
    """Whether a name is one of :func:`draft_name`'s."""
    return re.fullmatch(rf"\.{re.escape(target.name[:40])}\.[0-9a-f]{{16}}\.partial", place.name) is not None


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes ``target`` at the end, and leaves nothing if anything fails before.

    Raises:
        WritingError: the system refuses it, or there is something that is no file.
    """
    with writing(target):
        if _is_stream(target):
            with target.open("wb") as stream:
                yield stream
            return
        _refuse_others(target)
        draft = draft_name(target)
        try:
            with os.fdopen(os.open(draft, _EXCLUSIVE, 0o666), "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(target)
            sync(target.parent)
        finally:
            draft.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> None:
    """Write a whole file.

    Raises:
        WritingError: as :func:`new_file`.
    """
    with new_file(target) as stream:
        stream.write(content)


def write_text(target: Path, text: str) -> None:
    """Write a whole file, in UTF-8, line ends as they are.

    Raises:
        WritingError: as :func:`new_file`.
    """
    write_bytes(target, text.encode("utf-8"))


def write_array(target: Path, array: np.ndarray) -> None:
    """Write one plain ``.npy`` file.

    Raises:
        WritingError: as :func:`new_file`.
    """
    with new_file(target) as stream:
        # Not the stream itself: what numpy writes past Python does not say why it failed.
        np.lib.format.write_array(_Writes(stream), array, allow_pickle=False)  # type: ignore[arg-type]


def write_arrays(target: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one plain ``.npz`` file.

    Raises:
        WritingError: as :func:`new_file`.
    """
    with new_file(target) as stream:
        np.savez(stream, allow_pickle=False, **arrays)  # type: ignore[arg-type]


class _Writes:
    """A stream of which nothing but ``write`` is known."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write = stream.write


def fresh_file(file: Path) -> BinaryIO:
    """A new file in a folder of one's own, in place of whatever has its name."""
    file.unlink(missing_ok=True)
    return os.fdopen(os.open(file, _EXCLUSIVE, 0o666), "wb")


def append_to(file: Path) -> TextIO:
    """A text file to add lines to; never through a link."""
    return io.TextIOWrapper(os.fdopen(os.open(file, _APPENDING, 0o666), "ab"), encoding="utf-8")


def check_writable(target: Path, option: str, headline: str) -> None:
    """Refuse a file that could not be written, before any work is done.

    Args:
        target: the file.
        option: what the user gave it with.
        headline: of the complaint.

    Raises:
        WritingError: it is a folder, there is no folder to write to, or the system refuses it.
    """
    if _is_stream(target):
        return
    draft = draft_name(target) if target.name else target
    try:
        if target.is_dir():
            raise WritingError(headline, [Complaint(option, "is a folder", "a file", str(target))])
        if not target.parent.is_dir():
            complaint = Complaint(option, "no such folder", got=str(target.parent))
            raise WritingError(headline, [complaint], "make the folder first")
        _refuse_others(target)
        try:
            os.close(os.open(draft, _EXCLUSIVE, 0o666))
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        complaint = Complaint(option, error.strerror or str(error), "a file that can be written", str(target))
        raise WritingError(headline, [complaint]) from error


def read_toml(file: Path, what: str, refuse: type[InputError]) -> dict[str, Any]:
    """A file of TOML.

    Args:
        file: to read.
        what: the reader calls it: ``profile``.
        refuse: how it complains.

    Raises:
        InputError: as ``refuse``: the file cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise refuse(f"The {what} cannot be read.", [Complaint(str(file), error.strerror or str(error))]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(f"The {what} is not TOML.", [Complaint(str(file), str(error))]) from error


def sync(place: Path) -> None:
    """Flush a file, or what a folder lists, to the disk, where the system lets readers do so."""
    if os.name == "nt":
        return
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(file: Path) -> None:
    """Take the space of a sparse file before it is mapped: a write to a map of a full disk kills the process.

    Raises:
        WritingError: the disk is full.
    """
    with writing(file), file.open("rb+") as stream:
        size = os.fstat(stream.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        stream.seek(len(stream.read(1 << 12)))  # macOS: what is not written takes no space; the header is
        while (left := size - stream.tell()) > 0:
            stream.write(bytes(min(left, 1 << 22)))


def _is_stream(target: Path) -> bool:
    return _STREAMS.fullmatch(os.path.realpath(target.parent)) is not None


def _refuse_others(target: Path) -> None:
    """Neither a folder nor a pipe or device is replaced by a file."""
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        what = "is a folder" if stat.S_ISDIR(mode) else "is no file"
        raise WritingError(f"{target.name} cannot be written.", [Complaint(str(target), what, "a file")], "write elsewhere")
