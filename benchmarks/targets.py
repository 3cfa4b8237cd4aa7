"""Places where a bundle can be measured, and why one cannot be here. Asking loads no runtime but onnxruntime."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.util import find_spec

from quantization.errors import Complaint, InputError


@dataclass(frozen=True)
class Target:
    """A runtime and what it runs on.

    Attributes:
        runtime: ``onnxruntime``, ``openvino``, ``coreml`` or ``evaluator``.
        model_format: of the bundles that it runs.
        provider: onnxruntime's execution provider, as ``flash-deploy generate --provider`` names it.
        execution_provider: onnxruntime's own name of it.
    """

    runtime: str
    model_format: str
    provider: str = "cpu"
    execution_provider: str = ""

    def absent(self) -> str:
        """Why it cannot be measured here; empty where it can."""
        if self.runtime == "onnxruntime":
            import onnxruntime

            there = onnxruntime.get_available_providers()
            return "" if self.execution_provider in there else f"this onnxruntime has no {self.execution_provider}"
        if self.runtime == "coreml" and platform.system() != "Darwin":
            return "Core ML is on Apple's systems only"
        package = "coremltools" if self.model_format == "coreml" else self.runtime
        return "" if find_spec(package) is not None else f"{package} is not installed"


def _onnxruntime(provider: str, execution_provider: str) -> Target:
    return Target("onnxruntime", "onnx", provider, execution_provider)


TARGETS: dict[str, Target] = {
    "onnxruntime-cpu": _onnxruntime("cpu", "CPUExecutionProvider"),
    "onnxruntime-cuda": _onnxruntime("cuda", "CUDAExecutionProvider"),
    "onnxruntime-tensorrt": _onnxruntime("tensorrt", "TensorrtExecutionProvider"),
    "onnxruntime-directml": _onnxruntime("directml", "DmlExecutionProvider"),
    "onnxruntime-coreml": _onnxruntime("coreml", "CoreMLExecutionProvider"),
    "onnxruntime-openvino": _onnxruntime("openvino", "OpenVINOExecutionProvider"),
    "openvino": Target("openvino", "onnx"),
    "coreml": Target("coreml", "coreml"),
    "evaluator": Target("evaluator", "coreml"),
}
DEFAULT = ("onnxruntime-cpu", "openvino", "coreml")


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TARGETS:
        raise InputError("Unknown target.", [Complaint("--target", "no such target", " or ".join(TARGETS), name)])
    return TARGETS[name]
