from __future__ import annotations

import msgspec
import onnxruntime
import pytest

from deploy.bundle.folder import open_bundle
from deploy.bundle.manifest import Manifest
from deploy.bundle.requirements import check_onnxruntime, least_onnxruntime
from deploy.errors import InputError
from deploy.runtime.pipeline import Pipeline
from quantization.schemes import parse_scheme
from tests.helpers.kept_bundle import V1


@pytest.mark.parametrize(
    ("opset", "compute", "schemes", "least"),
    [
        (23, "fp32", ["fp32"], "1.23"),
        (23, "fp16", ["int4g32"], "1.23"),
        (21, "fp32", ["fp16", "int8", "w8a8"], "1.20"),
        (21, "fp32", ["int8", "uint4g32"], "1.20"),
        (21, "fp32", ["int4g32", "int8g128"], "1.22"),
        (21, "fp32", ["int4g32", "int2g64"], "1.24"),
        (23, "fp32", ["uint2g32"], "1.24"),
        (21, "fp16", ["fp16", "int8"], "1.20"),
        (21, "fp16", ["int4g32"], "1.23"),
    ],
)
def test_the_least_version(opset: int, compute: str, schemes: list[str], least: str) -> None:
    assert least_onnxruntime(opset, compute, map(parse_scheme, schemes)) == least  # type: ignore[arg-type]


def manifest(version: int = 2, **requires: str) -> Manifest:
    return msgspec.structs.replace(open_bundle(V1).manifest, version=version, requires=requires)


@pytest.mark.parametrize("installed", ["1.22.1", "1.22.1+cu12", "1.9", "0.23"])
def test_an_older_one_is_told_what_to_install(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", installed)
    with pytest.raises(InputError) as error:
        check_onnxruntime(manifest(onnxruntime="1.23"))
    assert f"onnxruntime: is too old for this bundle (expected 1.23 or newer, got {installed})" in str(error.value)
    assert "pip install 'onnxruntime>=1.23', or build with --opset 21, from onnxruntime 1.20 on" in str(error.value)


def test_where_no_older_graphs_would_help_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.19.2")
    with pytest.raises(InputError, match=r"pip install 'onnxruntime>=1.20'$"):
        check_onnxruntime(manifest(onnxruntime="1.20"))


@pytest.mark.parametrize("installed", ["1.23.0", "1.23.0.dev20250801", "1.100", "2.0"])
def test_newer_ones_run_it(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", installed)
    check_onnxruntime(manifest(onnxruntime="1.23"))
    check_onnxruntime(manifest())  # says nothing


def test_version_1_asks_for_what_its_opset_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded, in whatever draws."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.0")
    with pytest.raises(InputError, match=r"expected 1.23 or newer, got 1.22.0"):
        Pipeline(V1)
