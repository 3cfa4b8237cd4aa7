"""What a graph is between its trace and its files, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploy.bundle.manifest import FileRecord, GraphRecord, KeptRecord
from exporters.layouts.spec import GraphSpec

if TYPE_CHECKING:
    from deploy.build.resume import Done
    from exporters.onnx.quantize import Kept

Progress = Callable[[int], None]
"""Called with the number of bytes just written."""


@dataclass(frozen=True)
class WrittenGraph:
    """A graph that was written.

    Attributes:
        record: for the manifest.
        files: that it is made of.
        kept: weights that keep their floating-point form.
        places: where its data holds what graphs of other sizes may share, by what it is: offset and length in bytes.
    """

    record: GraphRecord
    files: tuple[FileRecord, ...]
    kept: tuple[KeptRecord, ...]
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class Draft(Protocol):
    """A traced graph; its weights are not read yet."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of its own weights as they will be stored: those that another graph stores are not counted."""

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

    def take_over(self, done: Done) -> None:
        """Take note of a graph that an earlier build has written, before any is traced."""

    def skip(self, folder: Path, record: GraphRecord) -> None:
        """Take note of a graph that an earlier build has written; graphs come in the order in which they run."""

    def join(self, folder: Path, graphs: Sequence[Done]) -> list[Done]:
        """Store what graphs of several sizes have in common once, now that all are written and measured; nothing may follow."""


def kept_records(kept: Iterable[Kept]) -> tuple[KeptRecord, ...]:
    """For the manifest: weights that keep their floating-point form, and why."""
    return tuple(KeptRecord(component=k.component, weight=k.name, scheme=k.scheme, reason=k.reason) for k in kept)
