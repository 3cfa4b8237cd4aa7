"""A program as the evaluator sees it: operations in order, their arguments by name, constants that are read when asked for.

Translates ``MIL.proto`` (https://github.com/apple/coremltools/blob/main/mlmodel/format/MIL.proto) into frozen dataclasses.
Constants stand in three places there, and are all the same here: in ``const`` operations, in attributes of decompression
operations (up to iOS 17), in their inputs (from iOS 18 on).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.coreml.evaluate.blob import REMEDY, BlobFile, elements
from exporters.coreml.evaluate.dtypes import BY_CODE, DType
from exporters.errors import Complaint, ExportError

Blobs = Callable[[str], BlobFile]


@dataclass(frozen=True)
class Port:
    """A value's declaration.

    Args:
        name: unique in the program.
        dtype: its element type.
        shape: its sizes; None for one that is known only when the program runs.
    """

    name: str
    dtype: DType
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Constant:
    """A value that is stored in the package: read when it is needed, and not kept.

    Args:
        dtype: its element type.
        shape: its shape.
        read: gives it as an array (of ``dtype.array``; strings as an array of objects).
    """

    dtype: DType
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        kind: what it does, as MIL names it.
        name: its own name.
        arguments: by parameter: names of values and constants, more than one only where the parameter is a list.
        outputs: what it gives.
    """

    kind: str
    name: str
    arguments: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[Port, ...]

    @property
    def is_constant(self) -> bool:
        """Whether it stores or decompresses a constant."""
        return self.kind == "const" or self.kind.startswith("constexpr_")

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class Program:
    """A checked program.

    Args:
        opset: for example ``CoreML7``, which is iOS 17's.
        inputs: what it takes.
        outputs: what it gives.
        operations: in an order in which they can run.
    """

    opset: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operations: tuple[Operation, ...]

    @property
    def opset_version(self) -> int:
        """The number in the opset's name: 6 is iOS 16, 7 is iOS 17, 8 is iOS 18."""
        return int(self.opset.removeprefix("CoreML"))


def read_program(proto: Any, opset: str, blobs: Blobs, name: str) -> Program:
    """Translate the protobuf of a program.

    Args:
        proto: a ``CoreML.Specification.MILSpec.Program`` with the function.
        opset: the opset that the specification's version stands for.
        blobs: opens a weight file by its name in the program.
        name: of the function.

    Raises:
        ExportError: what cannot be represented: another opset, nested blocks, states, types or constants that are damaged.
    """
    function = proto.functions[name]
    complaints: list[Complaint] = []
    if function.opset != opset or opset not in function.block_specializations:
        complaint = Complaint(f"function {name}", "its opset is not the specification's", opset, function.opset)
        raise ExportError("A Core ML program cannot be evaluated.", [complaint], REMEDY)
    block = function.block_specializations[opset]
    reader = _Reader(blobs, complaints)
    inputs = tuple(reader.port(port, "input") for port in function.inputs)
    operations = tuple(reader.operation(operation) for operation in block.operations)
    declared = {port.name: port for port in (*inputs, *(port for operation in operations for port in operation.outputs))}
    complaints += [Complaint(f"output {name}", "nothing gives it") for name in block.outputs if name not in declared]
    if complaints:
        raise ExportError("A Core ML program cannot be evaluated.", complaints, REMEDY)
    return Program(opset, inputs, tuple(declared[name] for name in block.outputs), operations)


class _Reader:
    """Translates pieces of the protobuf and collects what is wrong with them."""

    def __init__(self, blobs: Blobs, complaints: list[Complaint]) -> None:
        self._blobs, self._complaints = blobs, complaints

    def port(self, proto: Any, where: str) -> Port:
        """A declaration; sizes that are not constant are None."""
        dtype, dimensions = self._type(proto.type, f"{where} {proto.name}")
        return Port(proto.name, dtype, dimensions)

    def operation(self, proto: Any) -> Operation:
        """An operation; its attributes (but its name) are arguments like any other."""
        name = _string(proto.attributes["name"]) if "name" in proto.attributes else ""
        name = name or ", ".join(port.name for port in proto.outputs)
        where = f"{proto.type} {name!r}"
        if proto.blocks:
            self._complaints.append(Complaint(where, "holds blocks of operations: control flow is not evaluated"))
        arguments: dict[str, tuple[str | Constant, ...]] = {}
        for parameter, argument in proto.inputs.items():
            arguments[parameter] = tuple(
                binding.name if binding.WhichOneof("binding") == "name" else self.constant(binding.value, f"{where} {parameter}")
                for binding in argument.arguments
            )
        for parameter, value in proto.attributes.items():
            if parameter != "name":
                arguments[parameter] = (self.constant(value, f"{where} {parameter}"),)
        return Operation(proto.type, name, arguments, tuple(self.port(port, where) for port in proto.outputs))

    def constant(self, proto: Any, where: str) -> Constant:
        """A stored value: immediate, or in a weight file."""
        dtype, dimensions = self._type(proto.type, where)
        shape = tuple(size or 0 for size in dimensions)
        if None in dimensions:
            self._complaints.append(Complaint(where, "a constant's size is not given"))
        if proto.WhichOneof("value") == "blobFileValue":
            return self._blob_constant(proto.blobFileValue, dtype, shape, where)
        tensor, count = proto.immediateValue.tensor, math.prod(shape)
        stored = _immediate(tensor, dtype)
        stored_count = None if stored is None else _count(stored, dtype, count)
        if stored is None or stored_count != count:
            got = str(tensor.WhichOneof("value")) if stored_count is None else str(stored_count)
            self._complaints.append(Complaint(where, "the stored values do not fit their type", f"{count} of {dtype.name}", got))
            return Constant(dtype, shape, lambda: np.zeros(0, dtype.array))
        array = elements(stored, dtype, shape) if stored.dtype == np.uint8 else stored.reshape(shape)
        return Constant(dtype, shape, lambda: array)

    def _blob_constant(self, proto: Any, dtype: DType, shape: tuple[int, ...], where: str) -> Constant:
        blob, offset = self._blobs(proto.fileName), proto.offset
        if complaint := blob.check(offset, dtype, shape, where):
            self._complaints.append(complaint)
        return Constant(dtype, shape, lambda: blob.read(offset, dtype, shape))

    def _type(self, proto: Any, where: str) -> tuple[DType, tuple[int | None, ...]]:
        """Element type and sizes of a tensor type; anything else is complained of."""
        kind = proto.WhichOneof("type")
        dtype = BY_CODE.get(proto.tensorType.dataType) if kind == "tensorType" else None
        if dtype is None:
            got = f"type {proto.tensorType.dataType}" if kind == "tensorType" else str(kind)
            self._complaints.append(Complaint(where, "is of a type that is not evaluated", "a tensor", got))
            dtype = BY_CODE[11]
        dimensions = proto.tensorType.dimensions
        sizes = (int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in dimensions)
        return dtype, tuple(sizes)


def _string(value: Any) -> str:
    return "".join(value.immediateValue.tensor.strings.values)


# Where MIL.proto keeps immediate values of each kind; what is not here lies in ``bytes`` as in a weight file.
_FIELDS = {
    "bool": "bools",
    "string": "strings",
    "fp32": "floats",
    "int32": "ints",
    "int16": "ints",
    "uint16": "ints",
    "int64": "longInts",
}


def _immediate(tensor: Any, dtype: DType) -> np.ndarray | None:
    """The stored elements, or their bytes (uint8); None if they are not where their type has them or out of its range."""
    field = _FIELDS.get(dtype.name, "bytes")
    if tensor.WhichOneof("value") != field:
        return None
    values = getattr(tensor, field).values
    if field == "bytes":
        return np.frombuffer(values, np.uint8)
    try:
        return np.array(list(values), dtype.array)
    except OverflowError:
        return None


def _count(stored: np.ndarray, dtype: DType, expected: int) -> int:
    """How many elements are stored, given that packed ones fill whole bytes."""
    if stored.dtype != np.uint8:
        return len(stored)
    return expected if len(stored) == dtype.size_bytes(expected) else len(stored) * 8 // dtype.bits
