"""onnxruntime sessions of a bundle's graphs: made when needed, freed after their stage unless they are to be kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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


class Sessions:
    """The loaded graphs of a bundle.

    Args:
        bundle: the bundle.
        provider: a key of :data:`PROVIDERS`.
        threads: threads of one operator; by default the runtime's choice.
        keep: keep graphs after their stage.
    """

    def __init__(self, bundle: Bundle, provider: str, threads: int | None, keep: bool) -> None:
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InputError("--threads is wrong.", [Complaint("--threads", "wrong", f"1 to {MAX_THREADS}", str(threads))])
        self._bundle, self._threads, self._keep = bundle, threads, keep
        self._provider = _provider(provider)
        self._loaded: dict[str, Any] = {}

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run a graph, loading it first if need be."""
        if graph not in self._loaded:
            if not self._keep:
                self._free()
            self._loaded[graph] = self._load(graph)
        try:
            return self._loaded[graph].run(None, inputs)  # type: ignore[no-any-return]
        except Exception as error:  # onnxruntime's exceptions share no base class but this one
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

    def _load(self, graph: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        record = self._bundle.manifest.graph(graph)
        file = self._bundle.file(record.path)
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=[self._provider])
        except Exception as error:  # onnxruntime's exceptions share no base class but this one
            complaint = Complaint(record.path, str(error).splitlines()[0])
            raise BundleError("A graph cannot be loaded.", [complaint], "run `flash-deploy verify` on the bundle") from error
        promised = [port.name for port in record.inputs], [port.name for port in record.outputs]
        actual = [port.name for port in session.get_inputs()], [port.name for port in session.get_outputs()]
        if promised != actual:
            raise BundleError(
                "A graph is not what the manifest says.",
                [Complaint(record.path, "other inputs or outputs", str(promised), str(actual))],
            )
        return session


def _provider(name: str) -> str:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if name not in PROVIDERS or PROVIDERS[name] not in available:
        there = ", ".join(key for key, value in PROVIDERS.items() if value in available)
        raise InputError("The execution provider cannot be used.", [Complaint("--provider", "not available here", there, name)])
    return PROVIDERS[name]
