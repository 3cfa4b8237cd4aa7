"""Latents that were made before, in safetensors files that are mapped into memory: a sample is a few pages of one.

A shard holds, for its ``n`` samples::

    latents-00000-of-00010.safetensors     latents [n, channels, height, width]
                                           tokens [n, length, width] and pooled [n, width]: embeddings, where there are some
    latents-00000-of-00010.jsonl           a line for each prompt, {"text": ...}, where there are some

Its metadata say ``latents = "(z - shift) * scale"``: the numbers are those that the transformer sees, not the autoencoder's own;
``clip_tokens``, how many of the tokens are CLIP's; and, of a set of shards, ``shard`` and ``shards``.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from distillation.data.files.captions import caption_of, record
from distillation.data.files.lines import Lines
from distillation.data.files.places import files_of
from distillation.data.source import DataError, Embeddings, Source, checked_number, digest
from exporters.errors import Complaint

__all__ = ["SCALED", "LatentsSource", "Shard"]

SCALED = "(z - shift) * scale"
_DTYPES = ("F16", "BF16", "F32")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_DIMENSIONS = {"latents": 4, "tokens": 3, "pooled": 2}


@dataclass
class Shard:
    """One file of latents, opened.

    Attributes:
        file: its path.
        metadata: what it says of itself.
        shapes: of its tensors, by name.
        lines: its prompts.
    """

    file: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    lines: Lines | None
    _handle: Any = field(repr=False)
    _tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, file: Path) -> Shard:
        """Open a file.

        Raises:
            DataError: it is damaged, or does not hold what it must.
        """
        from safetensors import SafetensorError, safe_open

        try:
            handle = safe_open(file, framework="pt")
            slices = {name: handle.get_slice(name) for name in handle.keys() if name in _DIMENSIONS}  # noqa: SIM118 - no mapping
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
        except (SafetensorError, OSError) as error:
            complaint = Complaint(str(file), "is cut short, or no safetensors file", got=str(error))
            raise DataError("Latents cannot be opened.", [complaint], "copy the file again, or write it again") from error
        sidecar = file.with_suffix(".jsonl")
        lines = Lines(sidecar) if sidecar.is_file() else None
        shard = cls(file, dict(handle.metadata() or {}), shapes, lines, handle)
        if complaints := shard.doubts(dtypes):
            raise DataError("Latents cannot be learned from.", complaints)
        return shard

    def __len__(self) -> int:
        return self.shapes["latents"][0]

    @property
    def embedded(self) -> bool:
        """Whether it holds embeddings."""
        return "tokens" in self.shapes

    @property
    def clip_tokens(self) -> int:
        """How many of the tokens are CLIP's."""
        return int(self.metadata["clip_tokens"])

    def row(self, name: str, number: int) -> Tensor:
        """One sample's part of a tensor, copied.

        Raises:
            DataError: it holds NaN or infinity.
        """
        if name not in self._tensors:
            self._tensors[name] = self._handle.get_tensor(name)  # a view of the file: nothing is read yet
        row = self._tensors[name][number].clone()
        if not bool(row.isfinite().all()):
            complaint = Complaint(f"{self.file}: {name}[{number}]", "holds NaN or infinity")
            raise DataError("A sample cannot be learned from.", [complaint], "encode it again, in fp32 where fp16 overflows")
        return row

    def doubts(self, dtypes: dict[str, str]) -> list[Complaint]:
        """All that is wrong with what the file holds and says."""
        if "latents" not in self.shapes:
            return [Complaint(str(self.file), "has no tensor latents", "latents [n, channels, height, width]")]
        return [*self._of_tensors(dtypes), *self._of_words()]

    def _of_tensors(self, dtypes: dict[str, str]) -> Iterator[Complaint]:
        for name, shape in self.shapes.items():
            where = f"{self.file}: {name}"
            if len(shape) != _DIMENSIONS[name] or 0 in shape:
                expected = f"{_DIMENSIONS[name]} dimensions, none of them 0"
                yield Complaint(where, "wrong shape", expected, str(list(shape)))
            elif shape[0] != len(self):
                yield Complaint(where, "is of another number of samples than the latents", str(len(self)), str(shape[0]))
            if dtypes[name] not in _DTYPES:
                yield Complaint(where, "wrong dtype", " or ".join(_DTYPES), dtypes[name])
        if ("tokens" in self.shapes) != ("pooled" in self.shapes):
            yield Complaint(str(self.file), "has half of the embeddings", "tokens and pooled", ", ".join(self.shapes))

    def _of_words(self) -> Iterator[Complaint]:
        where, said = str(self.file), self.metadata.get("latents", "nothing")
        if said != SCALED:
            what = "does not say that its latents are scaled as the transformer sees them"
            yield Complaint(where, what, f'metadata latents = "{SCALED}"', said)
        for key in ("scale", "shift"):
            if key in self.metadata and not _NUMBER.fullmatch(self.metadata[key]):
                yield Complaint(f"{where}: {key}", "is no number", "one like 1.5305", self.metadata[key])
        if self.embedded and not _is_count(self.metadata.get("clip_tokens", ""), self.shapes["tokens"]):
            got = self.metadata.get("clip_tokens", "nothing")
            yield Complaint(where, "does not say how many tokens are CLIP's", "metadata clip_tokens", got)
        if self.lines is not None and len(self.lines) != len(self):
            what = "has another number of prompts than there are latents beside it"
            yield Complaint(str(self.lines.file), what, str(len(self)), str(len(self.lines)))
        if self.lines is None and not self.embedded:
            expected = f"{self.file.stem}.jsonl beside it, or tensors tokens and pooled"
            yield Complaint(where, "has neither prompts nor embeddings", expected)


class LatentsSource(Source):
    """Latents of a folder's shards.

    Raises:
        DataError: there are none, one is damaged or unlike the others, or some of a set are missing.
    """

    has_latents = True

    def __init__(self, folder: Path) -> None:
        files = [folder / name for name in files_of(folder) if name.endswith(".safetensors")]
        if not files:
            complaint = Complaint(str(folder), "has no latents", ".safetensors files")
            raise DataError("There are no latents.", [complaint], "encode pictures first")
        self._shards = [Shard.of(file) for file in files]
        if complaints := [*_unlike(self._shards), *_missing(folder, self._shards)]:
            raise DataError(
                "Latents cannot be learned from.", complaints, "finish writing them, or remove what is of another set"
            )
        self._ends = list(itertools.accumulate(len(shard) for shard in self._shards))
        self.has_prompts = self._shards[0].lines is not None
        self.has_embeddings = self._shards[0].embedded
        #: Factor and shift of the autoencoder, where the files say them.
        self.scaling = {
            key: float(self._shards[0].metadata[key]) for key in ("scale", "shift") if key in self._shards[0].metadata
        }
        facts = [
            (shard.file.name, shard.file.stat().st_size, shard.metadata, shard.lines.digest if shard.lines else "")
            for shard in self._shards
        ]
        self.fingerprint = digest("latents", facts)

    def __len__(self) -> int:
        return self._ends[-1]

    def prompt(self, number: int) -> str | None:
        shard, row = self._at(number)
        if shard.lines is None:
            return None
        return caption_of(record(shard.lines[row], shard.lines.where(row)), shard.lines.where(row))

    def latent(self, number: int) -> Tensor:
        shard, row = self._at(number)
        return shard.row("latents", row)

    def embeddings(self, number: int) -> Embeddings | None:
        shard, row = self._at(number)
        return (shard.row("tokens", row), shard.row("pooled", row), shard.clip_tokens) if shard.embedded else None

    def _at(self, number: int) -> tuple[Shard, int]:
        index = bisect.bisect_right(self._ends, checked_number(number, len(self)))
        return self._shards[index], number - (self._ends[index] - len(self._shards[index]))


def _is_count(said: str, shape: tuple[int, ...]) -> bool:
    return said.isdecimal() and len(shape) == 3 and int(said) <= shape[1]


def _unlike(shards: list[Shard]) -> list[Complaint]:
    """Where shards are not of one kind."""

    def kind(shard: Shard) -> dict[str, Any]:
        said = {key: shard.metadata.get(key, "nothing") for key in ("scale", "shift", "clip_tokens", "identity")}
        shapes = {name: list(shape[1:]) for name, shape in shard.shapes.items()}
        return {"prompts": shard.lines is not None, **dict.fromkeys(_DIMENSIONS, "nothing"), **shapes, **said}

    first = kind(shards[0])
    return [
        Complaint(f"{shard.file}: {key}", f"is not that of {shards[0].file.name}", str(first[key]), str(value))
        for shard in shards[1:]
        for key, value in kind(shard).items()
        if value != first[key]
    ]


def _missing(folder: Path, shards: list[Shard]) -> list[Complaint]:
    """Whether a set of shards is whole, where they say of how many they are."""
    said = [(shard.metadata.get("shard", ""), shard.metadata.get("shards", "")) for shard in shards]
    count = said[0][1]
    whole = {(str(index), str(len(shards))) for index in range(len(shards))}
    if set(said) in (whole, {("", "")}):
        return []
    got = ", ".join(index or "one that does not say" for index, _ in said)
    expected = f"{count or 'as many'} shards, each once"
    return [Complaint(str(folder), "is no whole set of shards", expected, got)]
