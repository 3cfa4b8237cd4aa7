"""What a trace depends on, as one hash: equal keys mean equal traces.

A key that is too narrow would give a wrong graph in silence; one that is too wide costs seconds. So nothing is listed by hand:
:mod:`exporters.onnx.trace_description` goes through the module that is traced and through the code that it runs, as this process
has loaded it, so that a constant that was changed at run time is seen, and a file that was edited since does not pass for what
runs. Beside that stand the ports, every source file of the packages (for what no instance leads to), and the libraries' versions.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import types
from collections.abc import Callable
from dataclasses import astuple
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from exporters.layouts.spec import GraphSpec
from exporters.onnx.trace_description import LIBRARIES, Description, UnkeyableError
from exporters.restructure import attention

PACKAGES = ("exporters", "quantization")


def trace_key(module: torch.nn.Module, spec: GraphSpec, tracer: Callable[..., Any]) -> str | None:
    """The key of a module's trace; none where something in it cannot be described, which is then not kept.

    Args:
        module: as it will be traced.
        spec: whose ports it has.
        tracer: what traces it.
    """
    ports = [[astuple(port) for port in side] for side in (spec.inputs, spec.outputs)]
    operator = [function for function in vars(attention).values() if isinstance(function, types.FunctionType)]
    description = Description()
    try:
        for part in (versions(), source_hash(), torch.get_default_dtype(), spec.name, ports, operator, tracer, module):
            description.add(part)
    except (UnkeyableError, RecursionError):
        return None
    return description.digest()


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a trace is made with."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


@functools.lru_cache(maxsize=1)
def source_hash() -> str:
    """A hash of every source file of the packages, whether it takes part in a trace or not."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
