"""Tar files as webdataset writes them, read at any place.

A sample is the files of a shard that have one name up to the first dot: ``000017.jpg``, ``000017.txt``. Its picture is a PNG,
JPEG or WebP; its caption is text, or, where there is none, in JSON. Whatever else is there is never looked at, least of all
unpickled.

A tar file has no table of contents: all headers are read once, when the shards are opened, and where those of pictures and
captions are is kept, 24 bytes a sample. That takes 70 seconds of one core for a million samples.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from torch import Tensor

from distillation.data.files.captions import caption_of, decoded, record
from distillation.data.files.pictures import SUFFIXES, decoded_picture
from distillation.data.files.places import REMEDY, files_of
from distillation.data.settings import ShardsData
from distillation.data.source import DataError, Source, checked_number, digest
from exporters.errors import Complaint
from exporters.links import is_own

__all__ = ["ShardsSource", "expanded"]

_PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
_CAPTIONS = ("txt", "json")  # the first that a sample has is its caption
_PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
_BRACES = re.compile(r"([^{}]*)\{([^{}]*)\}(.*)")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NOTE = re.compile(r"(?:^|/)__[^/]*__(?:$|/)")  # webdataset's own, about a shard
_UNREADABLE = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError)
_SPOILT = "copy the shard again, or write it again"


class ShardsSource(Source):
    """Pairs of pictures and captions in tar files.

    Raises:
        DataError: there are no shards, one is damaged or not of its folder, or not each picture has exactly one caption.
    """

    has_pictures = True

    def __init__(self, folder: Path, settings: ShardsData) -> None:
        self._resolution = settings.resolution
        self._files = _shards(folder, settings.path)
        rows: list[tuple[int, int, int]] = []
        facts = []
        for index, file in enumerate(self._files):
            samples = _samples(file)
            rows += [(index, picture.offset, caption.offset) for picture, caption in samples]
            sizes = [(picture.name, picture.size, caption.size) for picture, caption in samples]
            facts.append((file.name, file.stat().st_size, digest(sizes)))
        if not rows:
            raise DataError("There are no samples.", [Complaint(str(file), "has no pictures") for file in self._files])
        self._rows = np.array(rows, np.int64)
        self.fingerprint = digest("shards", settings.resolution, facts)

    def __len__(self) -> int:
        return len(self._rows)

    def prompt(self, number: int) -> str:
        shard, _, offset = self._rows[checked_number(number, len(self))].tolist()
        where, content = _member_at(self._files[shard], offset)
        text = decoded(content, where)
        return caption_of(record(text, where), where) if where.lower().endswith(".json") else text

    def picture(self, number: int) -> Tensor:
        shard, offset, _ = self._rows[checked_number(number, len(self))].tolist()
        where, content = _member_at(self._files[shard], offset)
        return decoded_picture(content, self._resolution, where)


def expanded(pattern: str) -> list[str]:
    """What braces stand for, as in a shell.

    >>> expanded("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    >>> expanded("{a,b}/{0..1}")
    ['a/0', 'a/1', 'b/0', 'b/1']
    """
    match = _BRACES.fullmatch(pattern)
    if match is None:
        return [pattern]
    before, inside, after = match.groups()
    if ends := _RANGE.fullmatch(inside):
        words = [str(number).zfill(len(ends[1])) for number in range(int(ends[1]), int(ends[2]) + 1)]
    else:
        words = inside.split(",")
    return [before + word + rest for word in words for rest in expanded(after)]


def _shards(folder: Path, path: str) -> list[Path]:
    """The tar files that a recipe names, each once."""
    place = folder / path
    if place.is_dir():
        names = list(files_of(place))
        if packed := [name for name in names if name.lower().endswith(_PACKED)]:
            raise _packed([place / name for name in packed])
        files = [place / name for name in names if name.lower().endswith(".tar")]
    else:
        files = []
        for name in expanded(path):
            there = sorted(glob(name, root_dir=folder)) if has_magic(name) else [name]  # noqa: PTH207 - takes absolute ones too
            files += [folder / one for one in there]
    files = list(dict.fromkeys(files))
    if not files:
        raise DataError("There are no shards.", [Complaint(str(place), "no such files", "a folder of .tar files, or a pattern")])
    if packed_files := [file for file in files if file.name.lower().endswith(_PACKED)]:
        raise _packed(packed_files)
    if absent := [file for file in files if not file.is_file()]:
        raise DataError("Shards cannot be opened.", [Complaint(str(file), "no such file") for file in absent])
    if foreign := [file for file in files if not is_own(file, file.parent)]:
        what = "is a link that leads out of the folder"
        raise DataError("Shards cannot be opened.", [Complaint(str(file), what) for file in foreign], REMEDY)
    return files


def _packed(files: list[Path]) -> DataError:
    complaints = [Complaint(str(file), "is compressed: it can be read from its beginning alone", ".tar") for file in files]
    return DataError("Shards cannot be opened.", complaints, "unpack them (gunzip); pictures are compressed already")


def _samples(file: Path) -> list[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    """The picture and the caption of each sample of a shard, in the order in which samples begin."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    complaints = []
    for member in _members(file):
        if problem := _problem(member):
            complaints.append(Complaint(f"{file}: {member.name}", problem))
            continue
        key, extension = _parts(member.name)
        if member.isdir() or not key or _NOTE.search(member.name) or extension not in (*_PICTURES, *_CAPTIONS):
            continue
        sample = samples.setdefault(key, {})
        if extension in sample:
            complaints.append(Complaint(f"{file}: {member.name}", "is there twice"))
        sample[extension] = member
    pairs = []
    for key, sample in samples.items():
        pictures = [sample[extension] for extension in _PICTURES if extension in sample]
        captions = [sample[extension] for extension in _CAPTIONS if extension in sample]
        if len(pictures) > 1:
            names = " and ".join(member.name for member in pictures)
            complaints.append(Complaint(f"{file}: {key}", "has two pictures", "one", names))
        elif not pictures:
            complaints.append(Complaint(f"{file}: {key}", "has a caption and no picture", f"one of {', '.join(_PICTURES)}"))
        elif not captions:
            complaints.append(Complaint(f"{file}: {key}", "has a picture and no caption", f"{key}.txt or {key}.json"))
        else:
            pairs.append((pictures[0], captions[0]))
    if complaints:
        raise DataError("A shard cannot be learned from.", complaints)
    return pairs


def _problem(member: tarfile.TarInfo) -> str:
    """Why a member may not be in a shard: it could lead out of it, or its content is not where its header says."""
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts:
        return "has a name that leads out of the shard"
    if not (member.isfile() or member.isdir()):
        return "is neither a file nor a folder"  # a link, a device, a pipe
    return "is stored with holes, as a sparse file" if member.issparse() else ""


def _parts(name: str) -> tuple[str, str]:
    """A member's key and extension: its name is cut at the first dot, as webdataset does.

    >>> _parts("a.b/000017.seg.PNG"), _parts("a/.hidden.txt")
    (('a.b/000017', 'seg.png'), ('', 'hidden.txt'))
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}" if stem else "", extension.lower()


def _members(file: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar file, whole: tarfile itself takes a damaged header, or none, for the end."""
    try:
        with file.open("rb") as stream:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                yield from archive
                end = archive.offset
            _check_end(stream, end)
    except _UNREADABLE as error:
        complaint = Complaint(str(file), "is damaged, cut short, or no tar file", got=str(error))
        raise DataError("A shard cannot be read.", [complaint], _SPOILT) from error


def _check_end(stream: BinaryIO, end: int) -> None:
    """An archive ends in a block of zeros, and in nothing else after it."""
    stream.seek(end)
    if len(first := stream.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it stops at byte {end} without an end")
    while first:
        if any(first):
            raise tarfile.ReadError(f"there is no header at byte {end}, nor the end")
        first = stream.read(1 << 20)


def _member_at(file: Path, offset: int) -> tuple[str, bytes]:
    """What a complaint calls a member, and its content, from where its header begins."""
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            with tarfile.open(fileobj=stream, mode="r:") as archive:  # reads one header, where the stream stands
                member = archive.next()
            if member is None:
                raise tarfile.ReadError(f"there is nothing at byte {offset}")
            stream.seek(member.offset_data)
            content = stream.read(member.size)
            if len(content) < member.size:
                raise tarfile.ReadError(f"{member.name} is cut short")
    except _UNREADABLE as error:
        complaint = Complaint(str(file), "has changed since it was opened", got=str(error))
        raise DataError("A sample cannot be read.", [complaint], "leave the data alone while they are learned from") from error
    return f"{file}: {member.name}", content
