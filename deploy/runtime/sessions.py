"""A bundle's graphs in a runtime: loaded when needed, freed after their stage unless they are to be kept.

Two runtimes read the same ONNX files: onnxruntime with its execution providers, and OpenVINO, whose own choice on CPUs that have
it is bf16. It is asked for fp32 where the bundle's weights are floating-point. Where they are integers, denoiser and VAE take
bf16, and products round their inputs to int8 in groups, as onnxruntime's ``MatMulNBits`` does too
(python -m benchmarks.studies.denoiser_step). It compiles ten times longer than onnxruntime loads, so what runs once for a
picture (text, conditioner) stays with onnxruntime, in fp32: an error of a modulation would go into every step.

Core ML packages run in Core ML on macOS, and in the evaluator elsewhere.
"""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle.folder import Bundle
from deploy.bundle.manifest import GraphRecord
from deploy.bundle.requirements import check_onnxruntime
from deploy.errors import BundleError, Complaint, InputError
from exporters.choices import RUN_ONCE, Runtime

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
ACTIVATION_GROUP = 128  # inputs that OpenVINO rounds with one scale: its default, 32, is slower and no closer in pictures
WORTH_COMPILING_BYTES = 100_000_000  # flash-deploy bench: the built-in student takes 0.08 s, and 0.7 s to compile
X86_64 = ("x86_64", "AMD64")
RUNTIMES: dict[str, tuple[Runtime, ...]] = {"onnx": ("onnxruntime", "openvino"), "coreml": ("coreml", "evaluator")}
COREML_EXTRA = "pip install 'flash-deploy[export,coreml]'"
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Sessions:
    """The loaded graphs of a bundle.

    Args:
        bundle: the bundle.
        runtime: ``onnxruntime`` or ``openvino``; of Core ML bundles ``coreml`` (macOS) or ``evaluator`` (anywhere, slowly).
        provider: a key of :data:`PROVIDERS`; onnxruntime's.
        threads: threads of one operator; by default the runtime's choice.
        keep: keep graphs after their stage.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, provider: str, threads: int | None, keep: bool) -> None:
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
            raise InputError("--threads is wrong.", [Complaint("--threads", "wrong", f"1 to {MAX_THREADS}", str(threads))])
        self._bundle, self._threads, self._keep = bundle, threads, keep
        self.runtime = runtime
        if runtime not in (able := RUNTIMES[bundle.manifest.model_format]):
            complaint = Complaint("--runtime", "does not run this bundle's format", " or ".join(able), runtime)
            raise InputError("The runtime cannot be used.", [complaint])
        if runtime in RUNTIMES["coreml"]:
            _check_coreml(runtime, provider)
        else:
            if runtime == "openvino":
                _check_openvino(provider)
            check_onnxruntime(bundle.manifest)
            self._provider = _provider(provider)
        self._loaded: dict[str, Run] = {}
        self._closed = False

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run a graph, loading it first if need be."""
        self.check_open()
        if graph not in self._loaded:
            if not self._keep:
                self._free()
            self._loaded[graph] = self.load(graph)
        try:
            return self._loaded[graph](inputs)
        except Exception as error:  # the runtimes' exceptions share no base class but this one
            complaint = Complaint(graph, _gist(error))
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

    def close(self) -> None:
        """Free all graphs for good."""
        self._closed = True
        self._free()

    def check_open(self) -> None:
        """Refuse to go on after the end.

        Raises:
            InputError: the graphs were freed for good.
        """
        if self._closed:
            complaint = Complaint("Pipeline", "was closed: its graphs are freed", got=str(self._bundle.folder))
            raise InputError("The pipeline is closed.", [complaint], "open the bundle in a new one")

    def _free(self) -> None:
        self._loaded.clear()  # sessions are in no reference cycle: they go at once

    def load(self, graph: str) -> Run:
        """A graph of its own, which its caller frees."""
        record = self._bundle.manifest.graph(graph)
        promised = [port.name for port in record.inputs], [port.name for port in record.outputs]
        with self._bundle.plain(graph) as folder:
            try:
                if self.runtime == "openvino" and graph not in RUN_ONCE:
                    inputs, outputs, run = self._load_openvino(folder / record.path, promised)
                elif self.runtime in RUNTIMES["coreml"]:
                    inputs, outputs, run = *promised, self._load_coreml(folder, record)
                else:
                    inputs, outputs, run = self._load_onnxruntime(folder / record.path)
            except Exception as error:  # the runtimes' exceptions share no base class but this one
                complaint = Complaint(record.path, _gist(error))
                raise BundleError("A graph cannot be loaded.", [complaint], "run `flash-deploy verify` on the bundle") from error
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

    def _load_openvino(self, file: Path, promised: tuple[list[str], list[str]]) -> tuple[list[str], list[str], Run]:
        import openvino

        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "DYNAMIC_QUANTIZATION_GROUP_SIZE": ACTIVATION_GROUP}
        if self._bundle.manifest.precision != "mixed":
            config["INFERENCE_PRECISION_HINT"] = "f32"
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = self._threads
        compiled = openvino.Core().compile_model(str(file), "CPU", config)
        # A port keeps the names of all values that it stands for; the promised one need not come first.
        ports = (
            [next((name for name in names if name in port.get_names()), port.get_any_name()) for port in side]
            for side, names in zip((compiled.inputs, compiled.outputs), promised, strict=True)
        )

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            results = compiled(inputs)
            return [np.array(results[port]) for port in compiled.outputs]

        return *ports, run  # type: ignore[return-value]

    def _load_coreml(self, folder: Path, record: GraphRecord) -> Run:
        folders = [folder / stage.path for stage in record.stages]
        if self.runtime == "evaluator":
            from exporters.coreml.chain import chain

            return chain(folders, [port.name for port in record.outputs], function=record.function)
        return _coreml_chain(folders, record, self._bundle.manifest.compute_units)


def _coreml_chain(folders: list[Path], record: GraphRecord, units: str | None) -> Run:
    """Core ML's own runtime, on macOS; each stage is fed by name from what is given and what those before it made."""
    import coremltools as ct

    computes = ct.ComputeUnit.CPU_AND_NE if units == "cpu-and-ne" else ct.ComputeUnit.CPU_AND_GPU
    function = None if record.function == "main" else record.function
    models = [ct.models.MLModel(str(folder), compute_units=computes, function_name=function) for folder in folders]

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        values = {name: array.astype(np.int32) if array.dtype.kind == "i" else array for name, array in inputs.items()}
        for model, stage in zip(models, record.stages, strict=True):
            values |= model.predict({port.name: values[port.name] for port in stage.inputs})
        return [np.asarray(values[port.name], np.float32).reshape(port.shape) for port in record.outputs]  # type: ignore[arg-type]

    return run


def _gist(error: Exception) -> str:
    """The telling line of a runtime's message: OpenVINO's begins with places in its sources."""
    lines = [
        line
        for line in str(error).splitlines()
        if line.strip() and not re.match(r"(Exception from |Check .* failed at |Loading input)", line)
    ]
    return lines[0] if lines else type(error).__name__


def fastest_runtime(bundle: Bundle, provider: str = "cpu") -> Runtime:
    """The fastest runtime that is installed here, as far as the bundle's tier knows.

    Core ML bundles: Core ML on macOS, the evaluator elsewhere.

    OpenVINO where the tier prefers it, on x86-64, for the provider ``cpu``, for bundles with integer weights but without
    ``w8a8``, whose operators have no fast path there, and for students that are large enough for compiling to pay; else
    onnxruntime, which is as fast in floating point and nearer to the student (python -m benchmarks.studies.denoiser_step).
    """
    manifest = bundle.manifest
    if manifest.model_format == "coreml":
        return "coreml" if platform.system() == "Darwin" else "evaluator"
    able = provider == "cpu" and platform.machine() in X86_64 and find_spec("openvino") is not None
    suits = manifest.precision == "mixed" and all(rule.scheme != "w8a8" for rule in manifest.profile)
    pays = sum(graph.weight_bytes for graph in manifest.graphs) >= WORTH_COMPILING_BYTES
    return "openvino" if able and suits and pays and _prefers_openvino(manifest.tier) else "onnxruntime"


def _prefers_openvino(tier: str) -> bool:
    """Whether a tier's fastest runtime is OpenVINO; a tier that is not known here prefers nothing."""
    from deploy.tiers.tier import all_tiers  # the tiers are data of the building side: loaded where a choice hangs on them

    return tier in (tiers := all_tiers()) and tiers[tier].runtimes[0] == "openvino"


def _check_coreml(runtime: Runtime, provider: str) -> None:
    complaints = []
    if runtime == "coreml" and platform.system() != "Darwin":
        complaints.append(Complaint("--runtime", "Core ML is on Apple's systems only", "evaluator", runtime))
    if provider != "cpu":
        complaints.append(Complaint("--provider", "is onnxruntime's", got=provider))
    missing = [name for name in ("coremltools", *(["torch"] if runtime == "evaluator" else [])) if find_spec(name) is None]
    complaints += [Complaint(name, "is not installed") for name in missing]
    if complaints:
        raise InputError("The runtime cannot be used.", complaints, COREML_EXTRA if missing else "")


def _check_openvino(provider: str) -> None:
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
