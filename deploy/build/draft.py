"""What a graph is between its trace and its files, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploy.bundle.manifest import FileRecord, GraphRecord, KeptRecord
from exporters.layouts.spec import GraphSpec

if TYPE_CHECKING:
    from exporters.onnx.quantize import Kept

Progress = Callable[[int], None]
"""Called with the number of bytes just written."""


@dataclass(frozen=True)
class WrittenGraph:
    """A graph that was written: its record, its files, and the weights that keep their floating-point form."""

    record: GraphRecord
    files: tuple[FileRecord, ...]
    kept: tuple[KeptRecord, ...]


class Draft(Protocol):
    """A traced graph; its weights are not read yet."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of its weights as they will be stored."""

    @property
    def disk_bytes(self) -> int:
        """Upper bound of what its files will take, on the way included."""

    @property
    def memory_bytes(self) -> int:
        """What it will take when it is loaded and run, estimated."""

    def write(self, folder: Path, progress: Progress) -> WrittenGraph:
        """Write its files."""


class ModelFormat(Protocol):
    """How graphs become files of one format."""

    def draft(self, graph: GraphSpec) -> Draft:
        """Trace a graph."""

    def skip(self, folder: Path, record: GraphRecord) -> None:
        """Take note of a graph that an earlier build has written; graphs come in the order in which they run."""


def kept_records(kept: Iterable[Kept]) -> tuple[KeptRecord, ...]:
    """For the manifest: weights that keep their floating-point form, and why."""
    return tuple(KeptRecord(component=k.component, weight=k.name, scheme=k.scheme, reason=k.reason) for k in kept)
