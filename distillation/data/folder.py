"""A folder of pictures and what is said of them.

Either each picture has its caption beside it, or one file has all of them, as Hugging Face's ``imagefolder`` takes it::

    pictures/0001.png                      pictures/metadata.jsonl (or captions.jsonl)
    pictures/0001.txt                        {"file_name": "0001.png", "text": "a red circle"}
    pictures/more/0002.jpg                   {"file_name": "more/0002.jpg", "text": "two blue squares"}
    pictures/more/0002.txt                 pictures/0001.png ...

Pictures are numbered by their names in order. That each has a caption is seen when the folder is opened; what is in pictures and
in captions beside them, when they are asked for.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from distillation.data.files.captions import caption_of, decoded, record
from distillation.data.files.lines import Lines
from distillation.data.files.pictures import SUFFIXES, decoded_picture
from distillation.data.files.places import files_of, read_file
from distillation.data.settings import FolderData
from distillation.data.source import DataError, Source, checked_number, digest
from exporters.errors import Complaint

__all__ = ["FolderSource"]

LISTS = ("metadata.jsonl", "captions.jsonl")


class FolderSource(Source):
    """Pairs of pictures and captions.

    Raises:
        DataError: the folder cannot be listed, has no pictures, or not each of them has exactly one caption.
    """

    has_pictures = True

    def __init__(self, folder: Path, settings: FolderData) -> None:
        self._folder, self._resolution = folder, settings.resolution
        sizes = files_of(folder, deep=True)
        self._names = [name for name in sizes if name.lower().endswith(SUFFIXES)]
        if not self._names:
            expected = f"files that end in {', '.join(SUFFIXES)}"
            raise DataError("There are no pictures.", [Complaint(str(folder), "has none", expected)])
        lists = [name for name in LISTS if name in sizes]
        beside = {_stem(name): name for name in sizes if name.endswith(".txt")}
        complaints = _doubts(folder, self._names, lists, beside)
        self._lines = Lines(folder / lists[0]) if lists else None
        if self._lines is not None:
            self._line_of, more = _lines_of(folder, self._names, self._lines)
            complaints += more
        if complaints:
            raise DataError("Pictures and captions do not fit together.", complaints)
        said = self._lines.digest if self._lines else [sizes[beside[_stem(name)]] for name in self._names]
        self.fingerprint = digest("folder", settings.resolution, [[name, sizes[name]] for name in self._names], said)

    def __len__(self) -> int:
        return len(self._names)

    def prompt(self, number: int) -> str:
        name = self._names[checked_number(number, len(self))]
        if self._lines is not None:
            line = int(self._line_of[number])
            return caption_of(record(self._lines[line], self._lines.where(line)), self._lines.where(line))
        file = self._folder / f"{_stem(name)}.txt"
        return decoded(read_file(file), str(file))

    def picture(self, number: int) -> Tensor:
        file = self._folder / self._names[checked_number(number, len(self))]
        return decoded_picture(read_file(file), self._resolution, str(file))


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _doubts(folder: Path, names: list[str], lists: list[str], beside: dict[str, str]) -> list[Complaint]:
    """What is there twice, and, where captions lie beside pictures, what has no partner."""
    complaints = []
    if len(lists) > 1:
        complaints.append(Complaint(str(folder), "has two lists of captions", "one", " and ".join(lists)))
    stems: dict[str, str] = {}
    for name in names:
        stem = _stem(name)
        if not lists and stem not in beside:
            complaints.append(Complaint(str(folder / name), "is a picture without caption", f"{Path(stem).name}.txt beside it"))
        elif not lists and stem in stems:
            complaints.append(Complaint(str(folder / beside[stem]), "is beside two pictures", "one", f"{stems[stem]} and {name}"))
        elif lists and stem in beside:
            complaints.append(Complaint(str(folder / name), "has two captions", "one", f"{beside[stem]} and {lists[0]}"))
        stems[stem] = name
    if not lists:
        lonely = [name for stem, name in beside.items() if stem not in stems]
        complaints += [Complaint(str(folder / name), "is a caption without picture") for name in lonely]
    return complaints


def _lines_of(folder: Path, names: list[str], lines: Lines) -> tuple[np.ndarray, list[Complaint]]:
    """The line of each picture, and what is wrong with the lines."""
    line_of: dict[str, int] = {}
    numbers = set(names)
    complaints: list[Complaint] = []
    for line in range(len(lines)):
        where = lines.where(line)
        try:
            content = record(lines[line], where)
            caption_of(content, where)
        except DataError as error:
            complaints += error.complaints
            continue
        name = content.get("file_name")
        place = PurePosixPath(name) if isinstance(name, str) else None
        if place is None:
            complaints.append(Complaint(where, "has no file_name", "the name of a picture"))
        elif place.is_absolute() or ".." in place.parts:
            complaints.append(Complaint(where, "leads out of the folder", "a name in it", name))
        elif str(place) not in numbers:
            complaints.append(Complaint(where, "is a caption without picture", f"a picture in {folder}", name))
        elif str(place) in line_of:
            complaints.append(Complaint(where, "names a picture again", "each once", name))
        else:
            line_of[str(place)] = line
    unsaid = [name for name in names if name not in line_of]
    complaints += [
        Complaint(str(folder / name), "is a picture without caption", f"a line in {lines.file.name}") for name in unsaid
    ]
    return np.array([line_of.get(name, -1) for name in names], np.int64), complaints
