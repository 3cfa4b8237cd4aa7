"""One package for graphs of several sizes: each size's program is a function of it, and what they store alike is stored once.

Two constants are alike where their bytes are: Core ML's weight file is read entry by entry, and those that the package has not
are appended to it. The format: :mod:`exporters.coreml.evaluate.blob`, which shares no code with this. Functions want iOS 18
(https://apple.github.io/coremltools/docs-guides/source/multifunction-models.html).
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporters.coreml.backend import proto
from exporters.coreml.package import MODEL, WEIGHTS
from exporters.coreml.weight_file import ALIGNMENT_BYTES, COUNT, Entry, aligned, entries
from quantization.files import write_bytes, writing

MAIN = "main"


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
        own = list(entries(target))
        with mmap.mmap(target.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            places = {_digest(entry, mapped): place for place, entry in own}
        end = target.seek(0, os.SEEK_END)
        for value in references:
            offset = value.blobFileValue.offset
            if offset not in found:
                entry = Entry.of(stored[offset : offset + ALIGNMENT_BYTES])
                if (key := _digest(entry, stored)) not in places:
                    places[key] = target.seek(aligned(end))
                    moved = entry._replace(start=places[key] + ALIGNMENT_BYTES)
                    target.write(bytes(moved))
                    target.write(stored[entry.start : entry.end])
                    end = moved.end
                    added.append(entry.size_bytes)
                found[offset] = places[key]
            value.blobFileValue.offset = found[offset]
        target.seek(0)
        target.write(COUNT.pack(len(own) + len(added)))
    return sum(added)


def _digest(entry: Entry, stored: mmap.mmap) -> bytes:
    """What a constant is: type, padding and bytes."""
    with memoryview(stored)[entry.start : entry.end] as data:
        return hashlib.sha256(b"%d %d " % (entry.kind, entry.padding_bits) + hashlib.sha256(data).digest()).digest()


def _stored(block: Any) -> Iterator[Any]:
    """The values of a block that refer to the weight file."""
    for operation in block.operations:
        given = [binding.value for argument in operation.inputs.values() for binding in argument.arguments]
        for value in (*operation.attributes.values(), *given):
            if value.WhichOneof("value") == "blobFileValue":
                yield value
        for inner in operation.blocks:
            yield from _stored(inner)
