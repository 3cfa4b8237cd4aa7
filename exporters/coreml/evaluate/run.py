"""The loop: operations in order, results rounded to what the program declares, values freed after their last use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exporters.coreml.evaluate.audit import Audit
from exporters.coreml.evaluate.constants import Constants
from exporters.coreml.evaluate.dtypes import BY_NAME
from exporters.coreml.evaluate.operators import Value, apply, to_torch
from exporters.coreml.evaluate.program import Constant, Operation, Port, Program
from exporters.errors import Complaint, ExportError

PRECISIONS = ("fp32", "fp16")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Step:
    """One operation and what it gave, by name, as it is held from then on."""

    operation: Operation
    values: Mapping[str, Tensor]


def evaluate(program: Program, inputs: Mapping[str, np.ndarray], precision: str = "fp16", audit: Audit | None = None) -> Arrays:
    """Run the program.

    Args:
        program: from :func:`~exporters.coreml.evaluate.package.open_package`.
        inputs: an array for each of its inputs, by name; converted to the declared type, which they must fit.
        precision: ``fp16`` rounds each operation's result to its declared type; ``fp32`` keeps 32 bits whatever is declared. Sums
            are accumulated in 32 bits in both.
        audit: takes note of each operation's result.

    Returns:
        The outputs by name, in their declared types (in fp32: ``float32`` for all floating ones).

    Raises:
        ExportError: inputs that do not fit the program, or an operation whose arguments do not fit its definition.
    """
    run = Run(program, inputs, precision)
    for step in run:
        if audit is not None:
            audit.note(step.operation, step.values)
    return run.outputs()


class Run:
    """One evaluation, to be iterated over once: an operation for each step.

    Args:
        program: the program.
        inputs: as :func:`evaluate`.
        precision: as :func:`evaluate`.

    Raises:
        ExportError: the inputs do not fit the program.
    """

    def __init__(self, program: Program, inputs: Mapping[str, np.ndarray], precision: str) -> None:
        if precision not in PRECISIONS:
            complaint = Complaint("precision", "is not known", " or ".join(PRECISIONS), precision)
            raise ExportError("A Core ML program cannot be evaluated so.", [complaint])
        self._program, self._precision = program, precision
        self._constants = Constants(program.operations)
        self._values = _take_inputs(program, inputs, precision)
        self._last_use = _last_uses(program)

    def __iter__(self) -> Iterator[Step]:
        for i, operation in enumerate(self._program.operations):
            if operation.is_constant:
                continue
            values = self._compute(operation)
            self._values |= values
            yield Step(operation, values)
            for name in self._last_use.get(i, ()):
                self._values.pop(name, None)

    def outputs(self) -> Arrays:
        """The program's outputs, once every step is done."""
        return {port.name: _as_declared(self._value(port.name), port, self._precision) for port in self._program.outputs}

    def _compute(self, operation: Operation) -> dict[str, Tensor]:
        arguments = {name: [self._value(one) for one in bound] for name, bound in operation.arguments.items()}
        results = apply(operation, arguments, self._program.opset_version)
        if len(results) != len(operation.outputs):
            complaint = Complaint(
                str(operation), "gives another number of results", str(len(operation.outputs)), str(len(results))
            )
            raise ExportError("An operation cannot be evaluated.", [complaint])
        ports = zip(operation.outputs, results, strict=True)
        return {port.name: _hold(result, port, self._precision, f"{operation}: {port.name}") for port, result in ports}

    def _value(self, bound: str | Constant) -> Value:
        if isinstance(bound, Constant):
            return to_torch(bound.read())
        held = self._values.get(bound)
        return to_torch(self._constants.read(bound)) if held is None else held


def _last_uses(program: Program) -> dict[int, list[str]]:
    """For each operation's index the names that nothing takes after it; the program's outputs stay."""
    last: dict[str, int] = {}
    for i, operation in enumerate(program.operations):
        for name in (*(port.name for port in operation.outputs), *_taken(operation)):
            last[name] = i
    for port in program.outputs:
        last.pop(port.name, None)
    uses: dict[int, list[str]] = {}
    for name, i in last.items():
        uses.setdefault(i, []).append(name)
    return uses


def _taken(operation: Operation) -> list[str]:
    return [name for bound in operation.arguments.values() for name in bound if isinstance(name, str)]


def _hold(result: Tensor, port: Port, precision: str, where: str) -> Tensor:
    """The result as it is kept: rounded if it is declared in 16 bits; of the declared kind and shape, or it is an error."""
    kind = "float" if result.is_floating_point() else "bool" if result.dtype == torch.bool else "int"
    fits = len(result.shape) == len(port.shape) and all(n in {None, m} for n, m in zip(port.shape, result.shape, strict=True))
    if kind != port.dtype.kind or not fits:
        expected = f"{port.dtype.kind} {['?' if n is None else n for n in port.shape]}"
        complaint = Complaint(where, "is not of the declared kind and shape", expected, f"{kind} {list(result.shape)}")
        raise ExportError("An operation cannot be evaluated.", [complaint])
    if kind == "float":
        return result.to(torch.float16 if precision == "fp16" and port.dtype.bits == 16 else torch.float32)
    if kind == "bool":
        return result
    if result.numel() and not port.dtype.lowest <= int(result.min()) <= int(result.max()) <= port.dtype.highest:
        got = f"{int(result.min())} to {int(result.max())}"
        complaint = Complaint(where, f"does not fit {port.dtype.name}", got=got)
        raise ExportError("An operation cannot be evaluated.", [complaint])
    return result.to(torch.int64 if port.dtype.highest > BY_NAME["int32"].highest else torch.int32)


def _take_inputs(program: Program, inputs: Mapping[str, np.ndarray], precision: str) -> dict[str, Tensor]:
    """The inputs as they are held; everything that does not fit is named at once."""
    complaints, held = [], {}
    names = {port.name for port in program.inputs}
    complaints += [Complaint(f"input {name}", "is not the program's", ", ".join(sorted(names))) for name in inputs.keys() - names]
    for port in program.inputs:
        where = f"input {port.name}"
        if port.name not in inputs:
            complaints.append(Complaint(where, "is missing"))
            continue
        given = np.asarray(inputs[port.name])
        kinds = {"float": "fiub", "int": "iu", "bool": "b"}[
            port.dtype.kind
        ]  # floating inputs often carry integers or truth values
        if given.dtype.kind not in kinds:
            complaints.append(Complaint(where, "is of another type", port.dtype.name, str(given.dtype)))
            continue
        value = to_torch(given.astype(np.float32) if port.dtype.kind == "float" else given)
        assert isinstance(value, Tensor)
        try:
            held[port.name] = _hold(value, port, precision, where)
        except ExportError as error:
            complaints += error.complaints
    if complaints:
        raise ExportError("The inputs do not fit the Core ML program.", complaints)
    return held


def _as_declared(value: Value, port: Port, precision: str) -> np.ndarray:
    assert isinstance(value, Tensor)  # no string is an output: descriptions hold arrays only
    wanted = np.dtype(np.float32) if port.dtype.kind == "float" and precision == "fp32" else port.dtype.array
    return value.numpy().astype(wanted)
