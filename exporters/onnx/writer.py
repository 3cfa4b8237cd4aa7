"""Write a model whose weights are streamed: each is read once, encoded once, written once."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx_ir as ir

from exporters.onnx.quantize import BESIDE_CODES, LazyCodes
from exporters.onnx.weights import LazyWeight
from quantization.errors import Complaint, SchemeError
from quantization.files import fresh_file

# Runtimes can map external data only from a page boundary: 4 KiB on Linux, 64 KiB on Windows. Small tensors need none.
PAGE_BYTES, SMALL_BYTES = 65536, 4096
INLINE_BYTES = 1024
# What is written at once. For longer writes Linux (ext4) looks for larger pages: in a virtual machine, whose memory comes from
# its host, writes of 1 MiB and more took five to ten times as long.
PIECE_BYTES = 1 << 17
AHEAD = 2  # tensors that are encoded while one is written: of one, a part runs on one core only
_STREAMED = (LazyWeight, LazyCodes)


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written: its path inside the bundle, size and SHA-256 (hexadecimal)."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Shared:
    """Weights that another graph of the same student has stored already, with the same profile and the same calibration.

    Attributes:
        path: of that graph in the bundle; the graphs that share lie in one folder.
        places: where each weight lies in its data, and how many bytes it takes, by what it is.
    """

    path: str
    places: Mapping[str, tuple[int, int]]

    def place(self, tensor: object) -> tuple[int, int] | None:
        """Where a tensor lies; none where it is another, or lies in the graph's own file."""
        return self.places.get(tensor.identity) if isinstance(tensor, _STREAMED) else None


NOTHING = Shared("", {})


@dataclass(frozen=True)
class WrittenModel:
    """What was written.

    Attributes:
        files: the graph, and its data where it has some of its own.
        shared: what other graphs may share of it.
    """

    files: tuple[WrittenFile, ...]
    shared: Shared


def stored_bytes(model: ir.Model, shared: Shared = NOTHING) -> int:
    """Bytes of all weights as they are stored, without padding and without those that are shared."""
    return sum(tensor.nbytes for tensor in _own(model, shared))


def data_bytes(model: ir.Model, shared: Shared = NOTHING) -> int:
    """Upper bound of the external data's size."""
    return sum(tensor.nbytes + PAGE_BYTES for tensor in _own(model, shared))


def identities(model: ir.Model) -> dict[str, tuple[int, int]]:
    """The weights that a model will store in its data, as :attr:`Shared.places` has them, before their places are known."""
    streamed = (tensor for tensor in _own(model, NOTHING) if isinstance(tensor, _STREAMED) and tensor.nbytes > INLINE_BYTES)
    return {tensor.identity: (0, tensor.nbytes) for tensor in streamed if tensor.identity}


def _own(model: ir.Model, shared: Shared) -> Iterator[ir.TensorProtocol]:
    """The tensors that a model stores itself."""
    for value in model.graph.initializers.values():
        if value.const_value is not None and shared.place(value.const_value) is None:
            yield value.const_value


def parameters(model: ir.Model) -> int:
    """How many of the student's numbers the model's weights stand for, however they are stored."""
    total = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, LazyWeight):
            total += tensor.weight.elements
        elif isinstance(tensor, LazyCodes) and tensor.form not in BESIDE_CODES:
            total += tensor.encoding.weight.elements
    return total


def write(
    model: ir.Model, folder: Path, path: str, progress: Callable[[int], None] | None = None, shared: Shared = NOTHING
) -> WrittenModel:
    """Write ``model`` to ``folder / path`` and its weights to ``path + ".data"`` beside it; both are flushed to disk.

    Args:
        model: its initializers are replaced by references to the data file.
        folder: the bundle's folder.
        path: the graph's path in it.
        progress: called with the number of bytes just written.
        shared: what the graph reads from another one's data.

    Raises:
        SchemeError: weights that cannot be stored, all at once.
    """
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    data = _DataFile(target.with_name(target.name + ".data"))
    complaints: list[Complaint] = []
    places: dict[str, tuple[int, int]] = {}
    in_the_file = stored_bytes(model, shared)
    _refer(model, folder, shared)
    streamed = [(v, t) for v in model.graph.initializers.values() if isinstance(t := v.const_value, _STREAMED)]
    if progress:  # what the graph's file itself will hold
        progress(in_the_file - sum(tensor.nbytes for _, tensor in streamed))
    with data:
        for (value, tensor), read in zip(streamed, _read_ahead([tensor for _, tensor in streamed]), strict=True):
            try:
                if tensor.nbytes > INLINE_BYTES:
                    offset, length = data.append(read())
                    value.const_value = _external(tensor, data.file, offset, length)
                    places[tensor.identity] = offset, length
                else:
                    value.const_value = ir.Tensor(read(), name=tensor.name)
            except SchemeError as error:
                complaints += error.complaints
                continue
            if progress:
                progress(tensor.nbytes)
    if complaints:
        raise SchemeError("Some weights cannot be stored.", complaints)
    target.unlink(missing_ok=True)
    ir.save(model, target)
    with target.open("rb+") as stream:
        os.fsync(stream.fileno())
    written = [WrittenFile(path, target.stat().st_size, hashlib.sha256(target.read_bytes()).hexdigest())]
    if data.size_bytes:
        written.append(WrittenFile(f"{path}.data", data.size_bytes, data.sha256))
    else:
        data.file.unlink()
    places.pop("", None)  # no tensor of the student's
    return WrittenModel(tuple(written), Shared(path, places))


def _refer(model: ir.Model, folder: Path, shared: Shared) -> None:
    """Let a model read from another one's data what lies there."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and (place := shared.place(tensor)) is not None:
            value.const_value = _external(tensor, folder / f"{shared.path}.data", *place)


def _external(tensor: ir.TensorProtocol, file: Path, offset: int, length: int) -> ir.ExternalTensor:
    """A tensor that lies in a file of weights."""
    return ir.ExternalTensor(
        location=file.name,
        offset=offset,
        length=length,
        dtype=tensor.dtype,
        shape=tensor.shape,  # type: ignore[arg-type]
        name=tensor.name or "",
        base_dir=file.parent,
    )


def _read_ahead(tensors: Sequence[LazyWeight | LazyCodes]) -> Iterator[Callable[[], np.ndarray]]:
    """What gives each tensor's content in turn: the next are encoded while one is hashed and written."""
    with ThreadPoolExecutor(AHEAD) as pool:
        ahead: deque[Future[np.ndarray]] = deque()
        for i in range(len(tensors)):
            ahead += [pool.submit(tensor.read) for tensor in tensors[i + len(ahead) : i + 1 + AHEAD]]
            yield ahead.popleft().result


class _DataFile:
    """A file that tensors are appended to, hashed as it grows."""

    def __init__(self, file: Path) -> None:
        self.file, self.size_bytes, self._digest = file, 0, hashlib.sha256()

    def __enter__(self) -> Self:
        self._stream = fresh_file(self.file)
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def append(self, array: np.ndarray) -> tuple[int, int]:
        """Where it lies now, and how many bytes it takes."""
        page = PAGE_BYTES if array.nbytes >= PAGE_BYTES else SMALL_BYTES if array.nbytes >= SMALL_BYTES else 64
        self._put(np.zeros(-self.size_bytes % page, np.uint8))
        offset = self.size_bytes
        self._put(array.reshape(-1).view(np.uint8))
        return offset, array.nbytes

    def _put(self, octets: np.ndarray) -> None:
        view = memoryview(octets)  # type: ignore[arg-type]
        for start in range(0, octets.nbytes, PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            self._stream.write(piece)
            self._digest.update(piece)
        self.size_bytes += octets.nbytes
