"""Lines of a text file by number: where they begin is kept, what they say stays on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from distillation.data.files.captions import decoded
from distillation.data.source import DataError
from exporters.errors import Complaint

__all__ = ["Lines"]


class Lines:
    """The lines of a file that say something; empty ones do not count.

    Attributes:
        file: in UTF-8.
        digest: of all that it holds.

    Raises:
        DataError: it cannot be read, or a line is not UTF-8.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        starts, numbers, at, whole = [], [], 0, hashlib.sha256()
        try:
            with file.open("rb") as stream:
                for index, line in enumerate(stream):
                    whole.update(line)
                    if decoded(line, f"{file}: line {index + 1}"):
                        starts.append(at)
                        numbers.append(index)
                    at += len(line)
        except OSError as error:
            raise _unreadable(file, error) from error
        self._starts, self._numbers = np.array(starts, np.int64), np.array(numbers, np.int64)
        self.digest = whole.hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, number: int) -> str:
        """What a complaint calls a line, as editors count: from 1."""
        return f"{self.file}: line {self._numbers[number] + 1}"

    def __getitem__(self, number: int) -> str:
        try:
            with self.file.open("rb") as stream:
                stream.seek(self._starts[number])
                line = stream.readline()
        except OSError as error:
            raise _unreadable(self.file, error) from error
        return decoded(line, self.where(number))


def _unreadable(file: Path, error: OSError) -> DataError:
    return DataError("A file of text cannot be read.", [Complaint(str(file), error.strerror or str(error))])
