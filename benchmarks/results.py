"""What was measured, as a file: samples, not only their summary, with everything that they depend on.

History of the format: 1, the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from quantization.errors import Complaint, InputError

FORMAT: Literal["flash-deploy benchmark"] = "flash-deploy benchmark"
VERSION = 1
Milliseconds = tuple[Annotated[float, msgspec.Meta(ge=0)], ...]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Unknown keys are errors."""


class Series(_Record, frozen=True):
    """Times of equal runs in ms: wall, and CPU time of all threads."""

    wall_ms: Milliseconds
    cpu_ms: Milliseconds

    def __add__(self, other: Series) -> Series:
        return Series(wall_ms=self.wall_ms + other.wall_ms, cpu_ms=self.cpu_ms + other.cpu_ms)


class GraphResult(_Record, frozen=True):
    """One graph: loading it, its first run, its warm-ups, its measured runs, and the peak memory of the process meanwhile."""

    load: Series
    first: Series
    warm_ups: Series
    warm: Series
    peak_memory_bytes: int

    def __add__(self, other: GraphResult) -> GraphResult:
        return GraphResult(
            load=self.load + other.load,
            first=self.first + other.first,
            warm_ups=self.warm_ups + other.warm_ups,
            warm=self.warm + other.warm,
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
        )


class PictureResult(_Record, frozen=True):
    """Whole pictures, graphs loaded one after another: the first of the process, those after it, and the peak memory."""

    first: Series
    warm: Series
    peak_memory_bytes: int

    def __add__(self, other: PictureResult) -> PictureResult:
        return PictureResult(
            first=self.first + other.first,
            warm=self.warm + other.warm,
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
        )


class Measured(_Record, frozen=True):
    """One process: a bundle in a runtime."""

    runtime: str
    graphs: dict[str, GraphResult]
    picture: PictureResult
    memory_method: str
    metadata: dict[str, str]

    def __add__(self, other: Measured) -> Measured:
        """Both as one.

        Raises:
            InputError: they were not measured under the same circumstances.
        """
        keys = sorted(self.metadata.keys() | other.metadata.keys())
        unlike = [key for key in keys if self.metadata.get(key) != other.metadata.get(key)]
        complaints = [Complaint(key, "differs", str(self.metadata.get(key)), str(other.metadata.get(key))) for key in unlike]
        if complaints or self.graphs.keys() != other.graphs.keys():
            raise InputError("Runs that differ do not merge.", complaints, "measure them anew, side by side")
        return Measured(
            runtime=self.runtime,
            graphs={name: graph + other.graphs[name] for name, graph in self.graphs.items()},
            picture=self.picture + other.picture,
            memory_method=self.memory_method,
            metadata=self.metadata,
        )


class Entry(_Record, frozen=True):
    """A bundle on a target.

    Attributes:
        bundle: the folder's name.
        fingerprint: SHA-256 of its manifest.
        target: where it ran.
        bytes_on_disk: of all its files.
        graph_bytes: of each graph's files.
        measured: all rounds together; none where the target is absent.
        absent: why it is.
        energy: joules a picture, or why that is not known.
        graph_db: signal-to-noise ratio of each graph against diffusers in fp32.
        picture_db: PSNR of each prompt's picture against diffusers in fp32.
    """

    bundle: str
    fingerprint: str
    target: str
    bytes_on_disk: int
    graph_bytes: dict[str, int]
    measured: Measured | None = None
    absent: str = ""
    energy: str = ""
    graph_db: dict[str, float] = msgspec.field(default_factory=dict)
    picture_db: dict[str, float] = msgspec.field(default_factory=dict)


class Results(_Record, frozen=True):
    """A benchmark: everything that ran side by side."""

    format: Literal["flash-deploy benchmark"]
    version: Annotated[int, msgspec.Meta(ge=1, le=VERSION)]
    measured_at: str
    commit: str
    rounds: int
    entries: tuple[Entry, ...]

    def to_json(self) -> bytes:
        """The file's content."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def load_results(file: Path) -> Results:
    """Read a benchmark.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Results)
    except OSError as error:
        raise InputError("The benchmark cannot be read.", [Complaint(str(file), error.strerror or str(error))]) from error
    except msgspec.MsgspecError as error:
        raise InputError(
            "The file is no benchmark.", [Complaint(str(file), str(error))], "flash-deploy bench --json makes one"
        ) from error
