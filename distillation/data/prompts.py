"""Prompts alone: what a student learns from whose teacher draws the pictures."""

from __future__ import annotations

from pathlib import Path

from distillation.data.files.lines import Lines
from distillation.data.source import DataError, Source, checked_number, digest
from exporters.errors import Complaint

__all__ = ["PromptsSource"]


class PromptsSource(Source):
    """A text file, one prompt a line; empty lines do not count.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or says nothing.
    """

    def __init__(self, file: Path) -> None:
        self._lines = Lines(file)
        if not len(self._lines):
            raise DataError("There are no prompts.", [Complaint(str(file), "is empty", "one prompt a line")])
        self.fingerprint = digest("prompts", self._lines.digest)

    def __len__(self) -> int:
        return len(self._lines)

    def prompt(self, number: int) -> str:
        return self._lines[checked_number(number, len(self))]
