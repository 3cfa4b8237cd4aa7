"""One package for graphs of several sizes: each size's program is a function of it, and what they store alike is stored once.

Two constants are alike where their bytes are: Core ML's weight file is read entry by entry, and those that the package has not
are appended to it. The format: :mod:`exporters.coreml.evaluate.blob`, which shares no code with this. Functions want iOS 18
(https://apple.github.io/coremltools/docs-guides/source/multifunction-models.html).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from exporters.coreml.backend import proto
from quantization.files import write_bytes, writing

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MAIN = "main"
_ALIGNMENT = 64
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<IIQQQ")  # sentinel, type, bytes, place of the data, padding bits


def add_function(package: Path, name: str, other: Path) -> int:
    """Make another package's program a function of a package; the other stays as it is.

    Where this is interrupted, the package is not what its checksums say, and has to be written again.

    Args:
        package: what has the function ``main``, and others.
        name: of the new function.
        other: a package of one function.

    Returns:
        The bytes of the weights that were not there yet.

    Raises:
        WritingError: the disk is full.
    """
    model, more = (proto.Model_pb2.Model.FromString((folder / MODEL).read_bytes()) for folder in (package, other))
    assert model.specificationVersion == more.specificationVersion
    assert name not in model.mlProgram.functions
    function = more.mlProgram.functions[MAIN]
    with writing(package):
        added = _share_weights(function, package / WEIGHTS, other / WEIGHTS)
    model.mlProgram.functions[name].CopyFrom(function)
    described = model.description
    if not described.functions:
        described.functions.add(name=MAIN, input=described.input, output=described.output)
        described.ClearField("input")
        described.ClearField("output")
        described.defaultFunctionName = MAIN
    described.functions.add(name=name, input=more.description.input, output=more.description.output)
    write_bytes(package / MODEL, model.SerializeToString(deterministic=True))
    return added


def _share_weights(function: Any, into: Path, of: Path) -> int:
    """Let a function's constants refer to a weight file that gains what it does not hold."""
    references = [value for block in function.block_specializations.values() for value in _stored(block)]
    if not references:
        return 0
    found: dict[int, int] = {}  # places in the package's file by those in the other's
    added: list[int] = []
    with of.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as stored, into.open("r+b") as target:
        places = {_digest(entry, data): place for place, entry, data in _entries(target)}
        end = target.seek(0, os.SEEK_END)
        for value in references:
            offset = value.blobFileValue.offset
            if offset not in found:
                entry = _ENTRY.unpack_from(stored, offset)
                with memoryview(stored)[entry[3] : entry[3] + entry[2]] as data:
                    if (key := _digest(entry, data)) not in places:
                        places[key] = -(-end // _ALIGNMENT) * _ALIGNMENT
                        end = _append(target, places[key], entry, data)
                        added.append(entry[2])
                found[offset] = places[key]
            value.blobFileValue.offset = found[offset]
        target.seek(0)
        (count,) = _COUNT.unpack(target.read(_COUNT.size))
        target.seek(0)
        target.write(_COUNT.pack(count + len(added)))
    return sum(added)


def _append(file: BinaryIO, place: int, entry: tuple[int, ...], data: memoryview) -> int:
    """Write a constant and what says what it is; returns where it ends."""
    sentinel, kind, size, _, padding = entry
    file.seek(place)
    file.write(_ENTRY.pack(sentinel, kind, size, place + _ALIGNMENT, padding).ljust(_ALIGNMENT, b"\0"))
    file.write(data)
    return place + _ALIGNMENT + size


def _entries(file: BinaryIO) -> Iterator[tuple[int, tuple[int, ...], memoryview]]:
    """The constants of a weight file: where each is described, the description, and its bytes."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stored, memoryview(stored) as view:
        end = _ALIGNMENT
        for _ in range(_COUNT.unpack_from(stored, 0)[0]):
            place = -(-end // _ALIGNMENT) * _ALIGNMENT
            entry = _ENTRY.unpack_from(stored, place)
            end = entry[3] + entry[2]
            with view[entry[3] : end] as data:
                yield place, entry, data


def _digest(entry: tuple[int, ...], data: memoryview) -> bytes:
    """What a constant is: type, padding and bytes."""
    _, kind, _, _, padding = entry
    return hashlib.sha256(struct.pack("<IQ", kind, padding) + hashlib.sha256(data).digest()).digest()


def _stored(block: Any) -> Iterator[Any]:
    """The values of a block that refer to the weight file."""
    for operation in block.operations:
        given = [binding.value for argument in operation.inputs.values() for binding in argument.arguments]
        for value in (*operation.attributes.values(), *given):
            if value.WhichOneof("value") == "blobFileValue":
                yield value
        for inner in operation.blocks:
            yield from _stored(inner)
