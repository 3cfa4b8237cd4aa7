"""Safetensors files, memory-mapped: nothing is read but headers until a weight is asked for."""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from exporters.errors import Complaint, StudentError
from exporters.student.weights import four_bit, torchao
from exporters.student.weights.adapters import adapter_tensors, holds_unfused, unfused
from exporters.student.weights.eight_bit import FP8, INT8, how_stored, is_beside, scale_of, scaled
from exporters.student.weights.files import choose_weight_files
from exporters.student.weights.four_bit import FourBit
from exporters.student.weights.gguf_file import GgufFile, is_gguf
from exporters.student.weights.recognise import AGAIN, UNQUANTIZED, file_kind, quantization
from exporters.student.weights.templates import DEAD_TENSORS
from exporters.student.weights.torchao import ForeignClassError, Torchao
from exporters.student.weights.weight import Weight

_DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
}
_STORED = {**_DTYPES, **FP8, INT8: np.dtype(np.int8), "U8": np.dtype(np.uint8)}
# What torch.compile, DataParallel, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPER = re.compile(r"(?:^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Opened:
    """The weights of a component.

    Attributes:
        weights: by name.
        files: that they lie in.
        notes: what to say of names and of files that are not read.
    """

    weights: dict[str, Weight]
    files: list[Path]
    notes: list[str]


class WeightFile(Protocol):
    """A file of weights: what is in it is known, and read when it is asked for.

    Attributes:
        file: its path.
        names: the name of each tensor in the file, by the name that it is asked for by.
    """

    file: Path
    names: dict[str, str]

    def weights(self, names: Collection[str], component: str) -> dict[str, Weight]:
        """The named tensors."""
        ...

    def wrapper_notes(self, component: str) -> list[str]:
        """What to say of names that were stripped."""
        ...

    def coded(self, names: Collection[str]) -> str:
        """How those of the named tensors are stored that are codes, in words; empty where none is."""
        ...


def open_weight_file(file: Path, component: str) -> WeightFile:
    """A file of weights, by what it says that it is.

    Raises:
        StudentError: it cannot be read.
    """
    return GgufFile(file, component) if is_gguf(file) else SafetensorsFile(file, component)


class Coded(Protocol):
    """A weight that is stored as codes and what they stand for.

    Attributes:
        shape: of the weight.
        dtype: that it is read in.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def complaints(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Iterable[str]:
        """What does not fit its record, of shapes and types of its tensors by part."""
        ...

    def decoded(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The weight, of its tensors by part."""
        ...


class SafetensorsFile:
    """One safetensors file, mapped.

    Attributes:
        file: its path.
        names: the name of each tensor in the file, by its name without wrappers; without those that say how others are stored.
        wrappers: that were in the names.

    Raises:
        StudentError: it cannot be read, is no safetensors file, or is truncated.
    """

    def __init__(self, file: Path, component: str) -> None:
        from safetensors import SafetensorError, safe_open

        self.file = file
        _check_readable(file, component)
        try:
            with safe_open(file, framework="numpy") as handle:  # checks all of the header
                stored = list(handle.keys())
            self._tensors = _Tensors(file)
        except (SafetensorError, OSError) as error:
            what = "cannot be read" if isinstance(error, OSError) else "truncated or not a safetensors file"
            complaint = Complaint(f"{component}: {file}", f"{what}: {error}")
            raise StudentError("A weight file cannot be read.", [complaint], AGAIN) from error
        self.names: dict[str, str] = {}
        self.wrappers: set[str] = set()
        twice = []
        for name in stored:
            plain = unwrapped(name)
            if plain != name:
                self.wrappers |= set(_WRAPPER.findall(name))
            if plain in self.names:
                twice.append(Complaint(f"{component}: {plain}", "is stored twice", got=f"as {self.names[plain]} and {name}"))
            self.names[plain] = name
        if twice:
            raise StudentError(f"{file} cannot be used.", twice, "remove the copies")
        self._all = dict(self.names)
        beside = {name for name in self._all if is_beside(name, self._all) or four_bit.is_beside(name, self._all)}
        self._rounded = {unwrapped(name): record for name, record in torchao.records(self._tensors.metadata).items()}
        self._parts = {name: torchao.parts_of(name, self._all) for name in self._rounded}
        self._shards = {part: self._tensors for parts in self._parts.values() for part in parts.values()}
        unused = (torchao.parts_of(name, self._all, torchao.UNUSED).values() for name in self._rounded)
        beside |= self._shards.keys() | {part for parts in unused for part in parts}
        codes = {name: self._all[parts[torchao.CODES]] for name, parts in self._parts.items() if torchao.CODES in parts}
        self.names = {name: self._all[name] for name in self._all if name not in beside} | codes

    def join(self, other: SafetensorsFile) -> None:
        """Find the parts of weights in another shard, too: where one ends, torchao's scales may lie in the next."""
        for name, parts in other._parts.items():
            for part, at in parts.items():
                self._parts.setdefault(name, {}).setdefault(part, at)
                self._all.setdefault(at, other._all[at])
                self._shards.setdefault(at, other._tensors)

    def weights(self, names: Collection[str], component: str) -> dict[str, Weight]:
        """The named tensors, without their wrappers' names.

        Raises:
            StudentError: some have types that are not supported.
        """
        weights: dict[str, Weight] = {}
        foreign: dict[str, list[str]] = {}
        for name in names:
            if self._is_coded(name):
                weights[name] = self._weight_of_codes(name, component)
                continue
            stored, scale = self.names[name], scale_of(name, self._all)
            shape, kind = self._tensors.describe(stored)
            dtype = _DTYPES.get(kind) or (np.dtype(np.float16) if kind in FP8 else None)
            if scale:
                dtype = np.dtype(np.float32) if dtype is not None or kind == INT8 else None
            if dtype is None:
                foreign.setdefault(kind, []).append(name)
                continue
            load, origin = partial(self._load, name, scale), f"{component}: {stored} in {self.file.name}"
            weights[name] = Weight(shape, dtype, load, origin, component, name)
        if foreign:
            raise _unsupported(component, foreign)
        if wrong := [complaint for name in weights for complaint in self._scale_complaints(name, component)]:
            raise StudentError(f"The scales of {component} do not fit its weights.", wrong, AGAIN)
        return weights

    def _is_coded(self, name: str) -> bool:
        return name in self._rounded or four_bit.record_of(name, self._all) != ""

    def _weight_of_codes(self, name: str, component: str) -> Weight:
        """A weight in four bits, or one that torchao rounded.

        Raises:
            StudentError: what is beside it does not fit it, or it is of a kind that is not read.
        """
        if record := four_bit.record_of(name, self._all):
            parts = {part: f"{name}.{part}" for part in four_bit.PARTS if f"{name}.{part}" in self._all} | {"": name}
        else:
            parts = self._parts[name]
        shapes = {part: self._tensors_of(at).describe(self._all[at]) for part, at in parts.items()}
        try:
            if record:
                coded: Coded = FourBit.of(self._tensors.content(self._all[record]))
            else:
                coded = Torchao.of(self._rounded[name], shapes)
            wrong = list(coded.complaints(shapes))
        except ForeignClassError as error:
            raise quantized(component, f"{component}: {name}", f"torchao ({error})") from error
        except ValueError as error:
            wrong = [f"its record is not understood: {error}"]
        if wrong:
            complaints = [Complaint(f"{component}: {name}", one) for one in wrong]
            raise StudentError(f"The scales of {component} do not fit its weights.", complaints, AGAIN)

        def load() -> np.ndarray:
            return coded.decoded({part: self._tensors_of(at).view(self._all[at]) for part, at in parts.items()})

        return Weight(coded.shape, coded.dtype, load, f"{component}: {self.names[name]} in {self.file.name}", component, name)

    def _tensors_of(self, name: str) -> _Tensors:
        return self._shards.get(name, self._tensors)

    def _scale_complaints(self, name: str, component: str) -> list[Complaint]:
        if not (scale := scale_of(name, self._all)) or self._is_coded(name):
            return []
        rows = self._tensors.describe(self.names[name])[0][:1] or (1,)
        shape, kind = self._tensors.describe(self._all[scale])
        if kind in _DTYPES and math.prod(shape) in (1, *rows):
            return []
        return [
            Complaint(
                f"{component}: {scale}", "is no scale of its weight", f"a number, or {rows[0]} of them", f"{kind} {list(shape)}"
            )
        ]

    def _load(self, name: str, scale: str) -> np.ndarray:
        """A tensor as numbers: a view where they are stored as such."""
        stored = self.names[name]
        array = self._tensors.view(stored)
        if scale:
            return scaled(array, self._tensors.view(self._all[scale]), scale)
        return array.astype(np.float16) if self._tensors.describe(stored)[1] in FP8 else array

    def coded(self, names: Collection[str]) -> str:
        """How those of the named tensors are stored that are codes, in words; empty where none is."""
        kinds = set()
        rest = [name for name in names if not self._is_coded(name)]
        for name in set(names).difference(rest):
            record = four_bit.record_of(name, self._all)
            kinds.add(f"{record.rpartition('__')[2]} (bitsandbytes)" if record else torchao.kind_of(self._rounded[name]))
        kinds |= {self._tensors.describe(self.names[name])[1] for name in rest} & {*FP8, INT8}
        return how_stored(kinds, any(scale_of(name, self._all) for name in rest))

    def wrapper_notes(self, component: str) -> list[str]:
        """What to say of names that were stripped."""
        if not self.wrappers:
            return []
        return [f"{component}: tensors are named with {' and '.join(f'{w}.' for w in sorted(self.wrappers))} and read without it"]


class _Tensors:
    """The tensors of a file whose header has been checked, as views of its bytes.

    Without torch safetensors hands out copies, and importing torch takes seconds.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            # Private: torch wants arrays that can be written to, and what is written would not reach the file.
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self._begin = 8 + int.from_bytes(self._bytes[:8], "little")
        self._header: dict[str, Any] = json.loads(self._bytes[8 : self._begin])
        self.metadata: dict[str, str] = self._header.get("__metadata__") or {}

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """The shape of a tensor, and the type that it is stored in, as the format calls it."""
        return tuple(self._header[name]["shape"]), self._header[name]["dtype"]

    def content(self, name: str) -> bytes:
        """A tensor's bytes, whatever they are of."""
        first, last = self._header[name]["data_offsets"]
        return self._bytes[self._begin + first : self._begin + last]

    def view(self, name: str) -> np.ndarray:
        """A tensor of a type that numpy and ml_dtypes have."""
        shape, kind = self.describe(name)
        return np.ndarray(shape, _STORED[kind], self._bytes, self._begin + self._header[name]["data_offsets"][0])


def unwrapped(name: str) -> str:
    """A tensor's name without what wrappers add to it.

    >>> unwrapped("module._orig_mod.blocks.0._orig_mod.proj.weight")
    'blocks.0.proj.weight'
    """
    return _WRAPPER.sub("", name)


def open_component(folder: Path, component: str, variant: str | None = None) -> Opened:
    """Memory-map the weights of the component in ``folder``.

    Args:
        folder: the component's folder, for example ``student/transformer``.
        component: its name, for complaints.
        variant: the variant to take, for example ``fp16``; by default the plain files, or the only variant there is.

    Raises:
        StudentError: no usable file, a damaged file, a shard that is missing, or a path out of the folder.
    """
    files, notes = choose_weight_files(folder, component, variant)
    weights: dict[str, Weight] = {}
    errors: list[StudentError] = []
    opened: list[SafetensorsFile] = []
    for file in files:
        try:
            opened.append(SafetensorsFile(file, component))
        except StudentError as error:
            errors.append(error)
    for shard in opened:
        for other in opened:
            shard.join(other)
    names = [name for shard in opened for name in shard.names]
    if tool := quantization(names):
        raise quantized(component, str(folder), tool)
    if holds_unfused(names) or adapter_tensors(names):
        raise unfused(component, str(folder))
    notes += _coded_notes(component, opened)
    for shard in opened:
        try:
            more = shard.weights([name for name in shard.names if name not in DEAD_TENSORS], component)
        except StudentError as error:
            errors.append(error)
            continue
        twice = sorted(more.keys() & weights.keys())
        complaints = [Complaint(f"{component}: {name}", "is stored twice", got=f"again in {shard.file.name}") for name in twice]
        errors += [StudentError("", complaints)] if complaints else []
        weights.update(more)
    if errors:
        raise StudentError.of(f"The weights of {component} cannot be read", errors)
    notes += dict.fromkeys(note for shard in opened for note in shard.wrapper_notes(component))
    return Opened(weights, files, notes)


def _coded_notes(component: str, opened: Sequence[SafetensorsFile]) -> list[str]:
    told = dict.fromkeys(filter(None, (shard.coded([*shard.names]) for shard in opened)))
    return [f"{component}: {one}" for one in told]


def quantized(component: str, where: str, tool: str) -> StudentError:
    """What is said of weights that were quantized: their tensors are codes, scales and tables."""
    complaint = Complaint(where, f"is quantized with {tool}", "floating-point weights")
    return StudentError(f"{component} is quantized.", [complaint], UNQUANTIZED, f"{component} is quantized with {tool}")


def _unsupported(component: str, foreign: dict[str, list[str]]) -> StudentError:
    complaints = []
    for kind, names in sorted(foreign.items()):
        where = f"{component}: {min(names)}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        complaints.append(Complaint(where, "stored in an unsupported type", " or ".join(_DTYPES), kind))
    remedy = "convert the checkpoint to fp32, fp16 or bf16"
    if component == "text_encoder_3":
        remedy += ", or leave T5 out (--drop-t5)"
    return StudentError(
        f"{component} cannot be used.", complaints, remedy, f"{component} is stored as {', '.join(sorted(foreign))}"
    )


def _check_readable(file: Path, component: str) -> None:
    """Complain of what is no file, may not be read, or is recognised as something else."""
    where = f"{component}: {file}"
    if file.exists() and not file.is_file():  # a pipe would be waited for, a device read for ever
        raise StudentError("A weight file cannot be read.", [Complaint(where, "is not a file")], AGAIN)
    try:
        kind = file_kind(file)
    except OSError as error:
        what = (
            "leads to a file that is not there"
            if file.is_symlink() and not file.exists()
            else f"cannot be read: {os.strerror(error.errno or 0)}"
        )
        remedy = "check its permissions" if isinstance(error, PermissionError) else AGAIN
        raise StudentError("A weight file cannot be read.", [Complaint(where, what)], remedy) from error
    if kind is not None:
        raise StudentError(
            "A weight file cannot be read.", [Complaint(where, kind.what)], kind.remedy, f"{file.name} of {component} {kind.what}"
        )
    if str(file).encode(errors="ignore").decode() != str(file):  # other libraries that read it take no such path
        raise StudentError(
            "A weight file cannot be read.", [Complaint(where, "its path is not valid UTF-8")], "rename its folder"
        )
