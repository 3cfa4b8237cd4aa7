"""The files of a folder, and of no other place: links that lead out of it are refused, never followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from distillation.data.source import DataError
from exporters.errors import Complaint
from exporters.links import is_own

__all__ = ["REMEDY", "files_of", "read_file"]

REMEDY = "copy what the link leads to into the folder"


def files_of(folder: Path, deep: bool = False) -> dict[str, int]:
    """The sizes of a folder's files by name, sorted; hidden ones are left out.

    Links are a folder's own where they stay in it; in a model hub's cache, where they lead to its content.

    Args:
        folder: to list.
        deep: with the folders in it; their files are named ``folder/name``.

    Raises:
        DataError: there is no such folder, something in it leads out of it, or is neither file nor folder.
    """
    complaints: list[Complaint] = []
    try:
        sizes = dict(sorted(_walk(folder, folder, "", deep, complaints)))
    except OSError as error:
        got = error.strerror or str(error)
        raise DataError("The data cannot be listed.", [Complaint(str(error.filename or folder), got)]) from error
    if complaints:
        raise DataError("The data cannot be listed.", complaints, REMEDY)
    return sizes


def _walk(folder: Path, home: Path, above: str, deep: bool, complaints: list[Complaint]) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name, place = above + entry.name, Path(entry.path)
            if entry.name.startswith("."):  # a hub client's notes, a file manager's, drafts
                continue
            if entry.is_symlink() and not is_own(place, home):
                complaints.append(Complaint(str(place), "is a link that leads out of the folder", got=str(place.readlink())))
            elif entry.is_file():
                yield name, entry.stat().st_size
            elif entry.is_symlink():
                complaints.append(Complaint(str(place), "is a link to no file", got=str(place.readlink())))
            elif not entry.is_dir():
                complaints.append(Complaint(str(place), "is neither a file nor a folder"))
            elif deep:
                yield from _walk(place, home, f"{name}/", deep, complaints)


def read_file(file: Path) -> bytes:
    """All of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError("A sample cannot be read.", [Complaint(str(file), error.strerror or str(error))]) from error
