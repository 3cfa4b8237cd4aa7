"""Small builds, and what they leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploy.build import BuildRequest
from deploy.build.run import Silent
from exporters.student.student import Student


class Log(Silent):
    """Remembers what was traced."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    @property
    def traced(self) -> list[str]:
        return [text.removeprefix("tracing ") for text in self.stages if text.startswith("tracing")]


def small(students: dict[str, Student], output: Path, **changes: object) -> BuildRequest:
    return replace(
        BuildRequest(output=output, student=students["tiny"].path, height=32, width=48, max_sequence_length=7, parity="never"),
        **changes,
    )


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
