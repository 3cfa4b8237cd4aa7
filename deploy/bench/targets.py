"""Where a bundle, or its student, can be measured, and why one cannot be here. Asking loads no runtime but onnxruntime.

What runs there is a process of its own that takes ``--runs``, ``--warm-ups`` or ``--draw`` and answers in JSON:
``deploy.bench.runner``, ``deploy.bench.browser_runner`` or ``benchmarks.peers.runner``.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from benchmarks.extra import REMEDY, missing
from deploy.bundle.folder import Bundle
from deploy.errors import Complaint, InputError

if TYPE_CHECKING:
    from exporters.student.student import StudentSource


@dataclass(frozen=True)
class Assignment:
    """What a target is to measure.

    Attributes:
        bundle: opened; a peer draws its pictures from the student.
        folder: the bundle's folder, as the device knows it.
        student: for peers.
        work: where a peer may put files.
        threads: threads of one operator.
    """

    bundle: Bundle
    folder: str
    student: StudentSource | None
    work: Path
    threads: int | None


class BenchTarget(Protocol):
    """A runtime and what it runs on."""

    @property
    def of_student(self) -> bool:
        """Whether it draws with the student, not with the bundle."""

    @property
    def remote(self) -> bool:
        """Whether it can be asked for on a device elsewhere."""

    def fits(self, bundle: Bundle) -> bool:
        """Whether it runs bundles like this one."""

    def absent(self, assignment: Assignment) -> str:
        """Why it cannot be measured here; empty where it can."""

    def arguments(self, assignment: Assignment) -> list[str]:
        """What Python is started with."""


@dataclass(frozen=True)
class RunnerTarget:
    """A bundle in one of the runtimes of :class:`deploy.runtime.pipeline.Pipeline`.

    Attributes:
        runtime: ``onnxruntime``, ``openvino``, ``coreml`` or ``evaluator``.
        model_format: of the bundles that it runs.
        provider: onnxruntime's execution provider, as ``flash-deploy generate --provider`` names it.
        execution_provider: onnxruntime's own name of it.
        keep: keep graphs loaded between pictures.
    """

    runtime: str
    model_format: str = "onnx"
    provider: str = "cpu"
    execution_provider: str = ""
    keep: bool = False
    of_student: bool = False
    remote: bool = True

    def fits(self, bundle: Bundle) -> bool:
        return bundle.manifest.model_format == self.model_format

    def absent(self, assignment: Assignment | None = None) -> str:
        """As :class:`BenchTarget` says; the assignment does not matter."""
        if self.runtime == "onnxruntime":
            import onnxruntime

            there = onnxruntime.get_available_providers()
            return "" if self.execution_provider in there else f"this onnxruntime has no {self.execution_provider}"
        if self.runtime == "coreml" and platform.system() != "Darwin":
            return "Core ML is on Apple's systems only"
        package = "coremltools" if self.model_format == "coreml" else self.runtime
        return "" if find_spec(package) is not None else f"{package} is not installed"

    def arguments(self, assignment: Assignment) -> list[str]:
        options = ["--runtime", self.runtime, "--provider", self.provider, *(["--keep-graphs"] if self.keep else [])]
        options += [] if assignment.threads is None else ["--threads", str(assignment.threads)]
        return ["-m", "deploy.bench.runner", assignment.folder, *options]


@dataclass(frozen=True)
class BrowserTarget:
    """A browser bundle's page in a headless Chromium: ``wasm`` or ``webgpu``."""

    provider: str
    of_student: bool = False
    remote: bool = False

    def fits(self, bundle: Bundle) -> bool:
        return bundle.manifest.model_format == "onnx"

    def absent(self, assignment: Assignment) -> str:
        from deploy.page.chromium import find_chromium
        from deploy.page.page import check_page

        try:
            if to_do := check_page(assignment.bundle.manifest):
                return to_do
            if absent := missing("playwright", "psutil"):
                return f"{absent[0]} is not installed ({REMEDY})"
            find_chromium()
            if self.provider == "webgpu":
                _find_webgpu(assignment.bundle)
        except InputError as error:
            return error.headline.removesuffix(".") + (f": {error.complaints[0]}" if error.complaints else "")
        return ""

    def arguments(self, assignment: Assignment) -> list[str]:
        return ["-m", "deploy.bench.browser_runner", assignment.folder, "--provider", self.provider]


@dataclass(frozen=True)
class PeerTarget:
    """The bundle's student in something else (:data:`benchmarks.peers.runner.PEERS`), drawing the bundle's pictures."""

    peer: str
    of_student: bool = True
    remote: bool = False

    def fits(self, bundle: Bundle) -> bool:
        return True

    def absent(self, assignment: Assignment) -> str:
        if assignment.student is None:
            return "it draws with the student, which --student names"
        if find_spec("torch") is None:
            return "torch is not installed (pip install 'flash-deploy[export]')"
        from benchmarks.peers.peer import absent
        from benchmarks.peers.registry import PEERS

        return absent(PEERS[self.peer], assignment.bundle.manifest.text.t5 == "kept")

    def arguments(self, assignment: Assignment) -> list[str]:
        return ["-m", "benchmarks.peers.runner", self.peer, self.job(assignment)]

    def job(self, assignment: Assignment) -> str:
        """The bundle's pictures, for the peer to draw: JSON of :class:`benchmarks.peers.peer.Job`."""
        from benchmarks.peers.peer import Job
        from deploy.build.verify import sampling_of

        manifest = assignment.bundle.manifest
        assert assignment.student is not None  # else it is absent
        job = Job(
            student=str(assignment.student.path),
            variant=assignment.student.variant,
            ignore_lora=assignment.student.ignore_lora,
            lora=tuple(map(str, assignment.student.lora)),
            components={name: str(path) for name, path in assignment.student.components},
            fingerprint=manifest.student.fingerprint,
            height=manifest.picture.height,
            width=manifest.picture.width,
            sampling=sampling_of(manifest),
            keep_t5=manifest.text.t5 == "kept",
            max_sequence_length=manifest.text.max_sequence_length,
            clip_tokens=manifest.text.tokenizers[0].max_length,
            folder=str(assignment.work / self.peer),
            threads=assignment.threads,
        )
        return msgspec.json.encode(job).decode()


def _onnxruntime(provider: str, execution_provider: str) -> BenchTarget:
    return RunnerTarget("onnxruntime", "onnx", provider, execution_provider)


REFERENCE = "torch"
TARGETS: dict[str, BenchTarget] = {
    "onnxruntime-cpu": _onnxruntime("cpu", "CPUExecutionProvider"),
    "onnxruntime-cpu-kept": RunnerTarget("onnxruntime", "onnx", "cpu", "CPUExecutionProvider", keep=True),
    "onnxruntime-cuda": _onnxruntime("cuda", "CUDAExecutionProvider"),
    "onnxruntime-tensorrt": _onnxruntime("tensorrt", "TensorrtExecutionProvider"),
    "onnxruntime-directml": _onnxruntime("directml", "DmlExecutionProvider"),
    "onnxruntime-coreml": _onnxruntime("coreml", "CoreMLExecutionProvider"),
    "onnxruntime-openvino": _onnxruntime("openvino", "OpenVINOExecutionProvider"),
    "openvino": RunnerTarget("openvino"),
    "openvino-kept": RunnerTarget("openvino", keep=True),
    "coreml": RunnerTarget("coreml", "coreml"),
    "evaluator": RunnerTarget("evaluator", "coreml"),
    "browser-wasm": BrowserTarget("wasm"),
    "browser-webgpu": BrowserTarget("webgpu"),
    REFERENCE: PeerTarget("torch"),
    "torch-bf16": PeerTarget("torch-bf16"),
    "plain-onnxruntime": PeerTarget("plain-onnxruntime"),
    "plain-onnxruntime-int8": PeerTarget("plain-onnxruntime-int8"),
    "plain-openvino-nncf": PeerTarget("plain-openvino-nncf"),
}
DEFAULT = ("onnxruntime-cpu", "openvino", "coreml")
BROWSER_DEFAULT = ("browser-wasm", "browser-webgpu")


def find_target(name: str) -> BenchTarget:
    """The target of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TARGETS:
        raise InputError("Unknown target.", [Complaint("--target", "no such target", " or ".join(TARGETS), name)])
    return TARGETS[name]


@functools.cache
def _webgpu_in(folder: Path) -> InputError | None:
    from deploy.bundle.folder import open_bundle
    from deploy.page.drive import about_page, opened_page

    try:
        with opened_page(open_bundle(folder)) as chromium:
            about_page(chromium, "webgpu")
    except InputError as error:
        return error
    return None


def _find_webgpu(bundle: Bundle) -> None:
    """Ask a browser once.

    Raises:
        InputError: it has no WebGPU.
    """
    if (error := _webgpu_in(bundle.folder)) is not None:
        raise error
