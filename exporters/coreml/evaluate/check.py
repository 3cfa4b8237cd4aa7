"""What can be known of a program before it is run: every operation is known, every name is given before it is taken."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator

from exporters.coreml.evaluate import constants
from exporters.coreml.evaluate.operators import OPERATORS, parameters
from exporters.coreml.evaluate.program import Constant, Operation, Program
from exporters.errors import Complaint


def check_operations(program: Program) -> list[Complaint]:
    """Everything that is wrong with the program's operations; each unknown kind is named once."""
    supported = OPERATORS.keys() | constants.DECODERS.keys()
    unknown = Counter(operation.kind for operation in program.operations if operation.kind not in supported)
    complaints = [
        Complaint(f"operation {kind}", "is not known to the evaluator", got=f"{count} of them") for kind, count in unknown.items()
    ]
    given = {port.name for port in program.inputs}
    constant: set[str] = set()
    for operation in program.operations:
        complaints += _check_names(operation, given, constant)
        if operation.kind in supported:
            complaints += _check_parameters(operation, program)
        names = {port.name for port in operation.outputs}
        given |= names
        if operation.is_constant:
            constant |= names
    return complaints


def _check_names(operation: Operation, given: set[str], constant: set[str]) -> Iterator[Complaint]:
    """Each name is given once, before it is taken; decompression takes constants only."""
    for parameter, bound in operation.arguments.items():
        for name in bound:
            if isinstance(name, str) and name not in (constant if operation.is_constant else given):
                kind = "constant" if operation.is_constant else "value"
                yield Complaint(f"{operation} {parameter}", f"takes a {kind} that nothing gives before", got=repr(name))
    for port in operation.outputs:
        if port.name in given:
            yield Complaint(str(operation), "gives a name that is given already", got=repr(port.name))


def _check_parameters(operation: Operation, program: Program) -> Iterator[Complaint]:
    """The operation's parameters are those that its definition has, once each, and none that it needs is missing."""
    if operation.is_constant:
        signature, lists = dict(constants.PARAMETERS[operation.kind]), set()
    else:
        signature = parameters(operation.kind)
        lists = {name for name, parameter in signature.items() if parameter.annotation == "list[Tensor]"}
    for name in operation.arguments.keys() - signature.keys():
        yield Complaint(str(operation), "has a parameter that is not known", ", ".join(signature), name)
    for name, bound in operation.arguments.items():
        if name not in lists and len(bound) != 1:
            yield Complaint(f"{operation} {name}", "is not one value", "1", str(len(bound)))
    for name, parameter in signature.items():
        if parameter.default is inspect.Parameter.empty and name not in operation.arguments:
            yield Complaint(str(operation), "misses a parameter", name)
    if not operation.outputs:
        yield Complaint(str(operation), "gives nothing")
    if operation.kind == "const":
        yield from _check_stored(operation)


def _check_stored(operation: Operation) -> Iterator[Complaint]:
    """A constant is of the type and shape that it declares."""
    for port, value in zip(operation.outputs, operation.arguments.get("val", ()), strict=False):
        if isinstance(value, Constant) and (value.dtype, value.shape) != (port.dtype, port.shape):
            expected, got = (f"{one.dtype.name} {list(one.shape)}" for one in (port, value))
            yield Complaint(str(operation), "stores another type than it declares", expected, got)
