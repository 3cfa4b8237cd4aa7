"""What was measured, as a file: samples, not only their summary, with everything that they depend on.

History of the format: 1, the first. 2, resident beside anonymous memory, energy of a picture, what a bundle is in words, and
quality picture by picture on each target, in place of one figure for each prompt, which are left out of files of version 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from benchmarks.quality.pictures import Quality
from quantization.errors import Complaint, InputError

FORMAT: Literal["flash-deploy benchmark"] = "flash-deploy benchmark"
VERSION = 2
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
    """One graph: loading it, its first run, its warm-ups, its measured runs, and the peak memory of the process meanwhile.

    Of a peer, whose graphs are all loaded at once, or a browser's stage, memory is not known and loading not told apart.
    """

    load: Series
    first: Series
    warm_ups: Series
    warm: Series
    peak_memory_bytes: int | None = None
    peak_resident_bytes: int | None = None

    def __add__(self, other: GraphResult) -> GraphResult:
        return GraphResult(
            load=self.load + other.load,
            first=self.first + other.first,
            warm_ups=self.warm_ups + other.warm_ups,
            warm=self.warm + other.warm,
            peak_memory_bytes=_larger(self.peak_memory_bytes, other.peak_memory_bytes),
            peak_resident_bytes=_larger(self.peak_resident_bytes, other.peak_resident_bytes),
        )


class PictureResult(_Record, frozen=True):
    """Whole pictures: the first of the process, loading included, those after it, the peak memory, and joules a picture."""

    first: Series
    warm: Series
    peak_memory_bytes: int | None
    peak_resident_bytes: int | None = None
    joules: tuple[float, ...] = ()

    def __add__(self, other: PictureResult) -> PictureResult:
        return PictureResult(
            first=self.first + other.first,
            warm=self.warm + other.warm,
            peak_memory_bytes=_larger(self.peak_memory_bytes, other.peak_memory_bytes),
            peak_resident_bytes=_larger(self.peak_resident_bytes, other.peak_resident_bytes),
            joules=self.joules + other.joules,
        )


class Measured(_Record, frozen=True):
    """One process: a bundle in a runtime, and how memory and energy were found out."""

    runtime: str
    graphs: dict[str, GraphResult]
    picture: PictureResult
    memory_method: str
    metadata: dict[str, str]
    energy_method: str = ""

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
            energy_method=self.energy_method,
        )


class Facts(_Record, frozen=True):
    """What a bundle is: its tier and format, the schemes of its profile, its picture's size in pixels, its steps."""

    tier: str
    model_format: str
    schemes: tuple[str, ...]
    height: int
    width: int
    steps: int


class Entry(_Record, frozen=True):
    """A bundle, or a student in a peer, on a target.

    Attributes:
        bundle: the folder's name.
        fingerprint: SHA-256 of its manifest; of a peer, the student's.
        target: where it ran.
        bytes_on_disk: of all its files.
        graph_bytes: of each graph's files.
        facts: what the bundle is; none of a peer.
        measured: all rounds together; none where the target is absent.
        absent: why it is.
        graph_db: signal-to-noise ratio of each graph against diffusers in fp32.
        quality: its pictures beside those of the fp32 student.
    """

    bundle: str
    fingerprint: str
    target: str
    bytes_on_disk: int
    graph_bytes: dict[str, int]
    facts: Facts | None = None
    measured: Measured | None = None
    absent: str = ""
    graph_db: dict[str, float] = msgspec.field(default_factory=dict)
    quality: Quality | None = None


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
        raw = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        return msgspec.convert(_second(raw) if raw.get("version") == 1 else raw, type=Results)
    except OSError as error:
        raise InputError("The benchmark cannot be read.", [Complaint(str(file), error.strerror or str(error))]) from error
    except (msgspec.MsgspecError, KeyError, AttributeError, TypeError) as error:  # the others: version 1 with other content
        raise InputError(
            "The file is no benchmark.", [Complaint(str(file), str(error))], "flash-deploy bench --json makes one"
        ) from error


def _second(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 1 as version 2."""
    gone = {"picture_db", "energy"}
    entries = [{key: value for key, value in entry.items() if key not in gone} for entry in raw["entries"]]
    return {**raw, "version": 2, "entries": entries}


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
