"""Packages that run one after another, each fed by name from what is given and from what those before it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from exporters.coreml.evaluate import Audit, Program, evaluate, open_package

Arrays = dict[str, np.ndarray]


def run_chain(stages: Sequence[Program], given: Mapping[str, np.ndarray], precision: str, audit: Audit | None = None) -> Arrays:
    """Everything that is known after the last stage: what was given, and what each stage made.

    Args:
        stages: opened packages.
        given: arrays by name, of which each stage takes what it names.
        precision: of :func:`exporters.coreml.evaluate.run.evaluate`.
        audit: takes note of each operation's result.
    """
    values = dict(given)
    for stage in stages:
        values |= evaluate(stage, {port.name: values[port.name] for port in stage.inputs}, precision, audit)
    return values


def chain(
    packages: Sequence[Path], outputs: Sequence[str], precision: str = "fp16", function: str = "main"
) -> Callable[[Arrays], list[np.ndarray]]:
    """A function from inputs by name to the outputs of that order.

    Args:
        packages: in the order in which they run.
        outputs: names of what is wanted.
        precision: of :func:`exporters.coreml.evaluate.run.evaluate`.
        function: which of each package's functions.
    """
    stages = [open_package(path, function) for path in packages]

    def run(inputs: Arrays) -> list[np.ndarray]:
        values = run_chain(stages, inputs, precision)
        return [values[name] for name in outputs]

    return run
