"""Small packages made with coremltools, for the evaluator to read."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporters.coreml.evaluate.proto import quiet_import

with quiet_import():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import get_new_symbol, types

__all__ = ["built", "built_model", "conversion", "ct", "get_new_symbol", "mb", "save", "traced", "types"]
TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool}
TARGETS = {"iOS16": ct.target.iOS16, "iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18}
PRECISIONS = {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}


@contextmanager
def conversion() -> Iterator[None]:
    """Quick and quiet: coremltools collects garbage at each conversion, which takes 0.2 s among as many objects as torch has.

    It leaves temporary folders to the collector, which warns of them; torch warns of every Python number that a trace fixes.
    """
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            warnings.filterwarnings("ignore", "User defined pattern matched", UserWarning)  # of a pass that then does nothing
            yield
    finally:
        gc.unfreeze()


def save(model: Any, path: Path) -> Path:
    with conversion():
        model.save(str(path))
        return path


def built_model(build: Callable[..., Any], inputs: dict[str, np.ndarray], target: str = "iOS17", precision: str = "") -> Any:
    """A program of the operations that ``build`` names; as they are, or converted to a precision by coremltools' passes."""
    specs = [mb.TensorSpec(array.shape, dtype=TYPES[str(array.dtype)]) for array in inputs.values()]
    program = mb.program(input_specs=specs, opset_version=TARGETS[target])(build)
    with conversion():
        return ct.convert(
            program,
            minimum_deployment_target=TARGETS[target],
            compute_precision=PRECISIONS[precision or "fp32"],
            pass_pipeline=ct.PassPipeline.DEFAULT if precision else ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )


def built(
    path: Path, build: Callable[..., Any], inputs: dict[str, np.ndarray], target: str = "iOS17", precision: str = ""
) -> Path:
    with conversion():  # around both: the model's folder goes with its last reference
        return save(built_model(build, inputs, target, precision), path)


def traced(path: Path, module: torch.nn.Module, inputs: dict[str, torch.Tensor], target: str, precision: str) -> Path:
    """A torch module as coremltools converts it."""
    with conversion(), torch.no_grad():
        trace = torch.jit.trace(module.eval(), tuple(inputs.values()), check_trace=False)
        model = ct.convert(
            trace,
            inputs=[ct.TensorType(name, tensor.shape, dtype=tensor.numpy().dtype.type) for name, tensor in inputs.items()],
            outputs=[ct.TensorType("result", dtype=np.float32)],
            minimum_deployment_target=TARGETS[target],
            compute_precision=PRECISIONS[precision],
            skip_model_load=True,
        )
        return save(model, path)
