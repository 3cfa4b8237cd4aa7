"""Which runtime a bundle gets where nobody says which."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from deploy.bundle.folder import Bundle, open_bundle
from deploy.runtime import sessions
from deploy.runtime.sessions import WORTH_COMPILING_BYTES, fastest_runtime
from tests.helpers.kept_bundle import V1


def large(**changes: Any) -> Bundle:
    """The kept bundle, as if it were of a large student with integer weights."""
    bundle = open_bundle(V1)
    first, *others = bundle.manifest.graphs
    rule = msgspec.structs.replace(bundle.manifest.profile[0], scheme=changes.pop("scheme", "int8"))
    graphs = (msgspec.structs.replace(first, weight_bytes=changes.pop("weight_bytes", WORTH_COMPILING_BYTES)), *others)
    changes = {"tier": "desktop-cpu", "precision": "mixed", "profile": (rule,), "graphs": graphs} | changes
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, **changes))


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that OpenVINO is for, with OpenVINO."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sessions, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("changes", "provider", "expected"),
    [
        ({}, "cpu", "openvino"),
        ({}, "cuda", "onnxruntime"),
        ({"tier": "browser"}, "cpu", "onnxruntime"),
        ({"tier": "of tomorrow"}, "cpu", "onnxruntime"),
        ({"precision": "fp16"}, "cpu", "onnxruntime"),
        ({"scheme": "w8a8"}, "cpu", "onnxruntime"),
        ({"weight_bytes": 0}, "cpu", "onnxruntime"),
    ],
)
def test_openvino_is_taken_where_it_pays(x86: None, changes: dict[str, Any], provider: str, expected: str) -> None:
    assert fastest_runtime(large(**changes), provider) == expected


@pytest.mark.parametrize("missing", ["processor", "package"])
def test_openvino_needs_its_processor_and_to_be_there(x86: None, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "processor":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    else:
        monkeypatch.setattr(sessions, "find_spec", lambda name: None)
    assert fastest_runtime(large()) == "onnxruntime"


@pytest.mark.parametrize(("system", "expected"), [("Darwin", "coreml"), ("Linux", "evaluator")])
def test_core_ml_runs_on_apples_systems(system: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    assert fastest_runtime(large(model_format="coreml")) == expected


def test_the_tiers_are_asked_last() -> None:
    """A bundle that OpenVINO is not for loads no tiers: a device that draws need not know them."""
    program = (
        "import sys; from deploy.runtime import Pipeline\n"
        f"Pipeline({str(V1)!r})\n"
        "sys.exit(any(name.startswith('deploy.tiers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
