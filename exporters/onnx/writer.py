"""Write a model whose weights are streamed: each is read once, encoded once, written once."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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


def stored_bytes(model: ir.Model) -> int:
    """Bytes of all weights as they are stored, without padding."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def data_bytes(model: ir.Model) -> int:
    """Upper bound of the external data's size."""
    return sum(v.const_value.nbytes + PAGE_BYTES for v in model.graph.initializers.values() if v.const_value is not None)


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


def write(model: ir.Model, folder: Path, path: str, progress: Callable[[int], None] | None = None) -> list[WrittenFile]:
    """Write ``model`` to ``folder / path`` and its weights to ``path + ".data"`` beside it; both are flushed to disk.

    Args:
        model: its initializers are replaced by references to the data file.
        folder: the bundle's folder.
        path: the graph's path in it.
        progress: called with the number of bytes just written.

    Raises:
        SchemeError: weights that cannot be stored, all at once.
    """
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    data = _DataFile(target.with_name(target.name + ".data"))
    complaints: list[Complaint] = []
    streamed = [(v, t) for v in model.graph.initializers.values() if isinstance(t := v.const_value, _STREAMED)]
    if progress:  # what the graph's file itself will hold
        progress(stored_bytes(model) - sum(tensor.nbytes for _, tensor in streamed))
    with data:
        for (value, tensor), read in zip(streamed, _read_ahead([tensor for _, tensor in streamed]), strict=True):
            try:
                if tensor.nbytes > INLINE_BYTES:
                    value.const_value = data.append(tensor, read())
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
    return written


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

    def append(self, tensor: LazyWeight | LazyCodes, array: np.ndarray) -> ir.ExternalTensor:
        page = PAGE_BYTES if array.nbytes >= PAGE_BYTES else SMALL_BYTES if array.nbytes >= SMALL_BYTES else 64
        self._put(np.zeros(-self.size_bytes % page, np.uint8))
        offset = self.size_bytes
        self._put(array.reshape(-1).view(np.uint8))
        return ir.ExternalTensor(
            location=self.file.name,
            offset=offset,
            length=array.nbytes,
            dtype=tensor.dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            base_dir=self.file.parent,
        )

    def _put(self, octets: np.ndarray) -> None:
        view = memoryview(octets)  # type: ignore[arg-type]
        for start in range(0, octets.nbytes, PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            self._stream.write(piece)
            self._digest.update(piece)
        self.size_bytes += octets.nbytes
