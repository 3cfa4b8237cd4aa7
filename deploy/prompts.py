"""Prompts from files. Needs no torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from deploy.errors import Complaint, InputError

BUILTIN = "builtin_student"


def read_prompts(file: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines do not count.

    Raises:
        InputError: the file cannot be read or holds none.
    """
    try:
        lines = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        complaint = Complaint(str(file), str(error))
        raise InputError("The prompts cannot be read.", [complaint], "one prompt a line, in UTF-8") from error
    if not lines:
        raise InputError("There are no prompts.", [Complaint(str(file), "empty")], "one prompt a line")
    return lines


def prompts_of_all_sorts() -> tuple[str, ...]:
    """The project's own, for students that draw anything."""
    with resources.as_file(resources.files("deploy").joinpath("prompts.txt")) as file:
        return read_prompts(file)


def prompts_for(student: str) -> tuple[str, ...]:
    """What to show of a student of that name: the built-in one draws shapes alone."""
    if student != BUILTIN:
        return prompts_of_all_sorts()
    with resources.as_file(resources.files("exporters").joinpath(BUILTIN, "prompts.txt")) as file:
        return read_prompts(file)
