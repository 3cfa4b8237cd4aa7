"""A bundle's graphs in a runtime: loaded when needed, freed after their stage unless they are to be kept.

Two runtimes read the same files: onnxruntime with its execution providers, and OpenVINO, which is asked for fp32 arithmetic where
the bundle is fp32 (its own choice on CPUs that have bf16 is bf16: 50 dB on the built-in student's pictures, not 135).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.bundle import Bundle
from deploy.errors import BundleError, Complaint, InputError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}

MAX_THREADS = 1024
Runtime = Literal["onnxruntime", "openvino"]
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Sessions:
    """The loaded graphs of a bundle.

    Args:
        bundle: the bundle.
        runtime: ``onnxruntime`` or ``openvino``.
        provider: a key of :data:`PROVIDERS`; onnxruntime's.
        threads: threads of one operator; by default the runtime's choice.
        keep: keep graphs after their stage.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, provider: str, threads: int | None, keep: bool) -> None:
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InputError("--threads is wrong.", [Complaint("--threads", "wrong", f"1 to {MAX_THREADS}", str(threads))])
        self._bundle, self._threads, self._keep = bundle, threads, keep
        self._runtime = runtime
        if runtime == "openvino":
            _check_openvino(provider)
        else:
            self._provider = _provider(provider)
        self._loaded: dict[str, Run] = {}

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run a graph, loading it first if need be."""
        if graph not in self._loaded:
            if not self._keep:
                self._free()
            self._loaded[graph] = self._load(graph)
        try:
            return self._loaded[graph](inputs)
        except Exception as error:  # the runtimes' exceptions share no base class but this one
            complaint = Complaint(graph, str(error).splitlines()[0])
            remedy = "run `flash-deploy verify` on the bundle; if it is good, the device may have too little memory"
            raise BundleError("A graph cannot be run.", [complaint], remedy) from error

    @contextlib.contextmanager
    def stage(self) -> Iterator[None]:
        """Free the graphs of the stage at its end, unless they are to be kept."""
        try:
            yield
        finally:
            if not self._keep:
                self._free()

    def _free(self) -> None:
        self._loaded.clear()  # sessions are in no reference cycle: they go at once

    def _load(self, graph: str) -> Run:
        record = self._bundle.manifest.graph(graph)
        file = self._bundle.file(record.path)
        try:
            inputs, outputs, run = self._load_openvino(file) if self._runtime == "openvino" else self._load_onnxruntime(file)
        except Exception as error:  # the runtimes' exceptions share no base class but this one
            complaint = Complaint(record.path, str(error).splitlines()[0])
            raise BundleError("A graph cannot be loaded.", [complaint], "run `flash-deploy verify` on the bundle") from error
        promised = [port.name for port in record.inputs], [port.name for port in record.outputs]
        if promised != (inputs, outputs):
            raise BundleError(
                "A graph is not what the manifest says.",
                [Complaint(record.path, "other inputs or outputs", str(promised), str((inputs, outputs)))],
            )
        return run

    def _load_onnxruntime(self, file: Path) -> tuple[list[str], list[str], Run]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        session = onnxruntime.InferenceSession(str(file), options, providers=[self._provider])
        ports = ([port.name for port in side] for side in (session.get_inputs(), session.get_outputs()))
        return *ports, lambda inputs: session.run(None, inputs)  # type: ignore[return-value]

    def _load_openvino(self, file: Path) -> tuple[list[str], list[str], Run]:
        import openvino

        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self._bundle.manifest.precision == "fp32":
            config["INFERENCE_PRECISION_HINT"] = "f32"
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = self._threads
        compiled = openvino.Core().compile_model(str(file), "CPU", config)
        ports = ([port.get_any_name() for port in side] for side in (compiled.inputs, compiled.outputs))

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            found = compiled(inputs)
            return [np.array(found[port]) for port in compiled.outputs]

        return *ports, run  # type: ignore[return-value]


def _check_openvino(provider: str) -> None:
    from importlib.util import find_spec

    if find_spec("openvino") is None:
        remedy = "pip install 'flash-deploy[openvino]'"
        raise InputError("The runtime cannot be used.", [Complaint("--runtime", "openvino is not installed")], remedy)
    if provider != "cpu":
        complaint = Complaint("--provider", "is onnxruntime's", "cpu with --runtime openvino", provider)
        raise InputError("The runtime cannot be used.", [complaint])


def _provider(name: str) -> str:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if name not in PROVIDERS or PROVIDERS[name] not in available:
        there = ", ".join(key for key, value in PROVIDERS.items() if value in available)
        raise InputError("The execution provider cannot be used.", [Complaint("--provider", "not available here", there, name)])
    return PROVIDERS[name]
