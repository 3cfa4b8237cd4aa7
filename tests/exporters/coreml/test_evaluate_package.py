"""Packages that are whole, and packages that are not: each damage gives one error that says where."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.coreml.evaluate import evaluate, open_package, proto
from exporters.coreml.evaluate.proto import model_class, quiet_import
from quantization.errors import InputError
from tests.helpers.packages import built, conversion, ct, get_new_symbol, mb

WEIGHT = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
X = np.ones((2, 5), np.float32)
MODEL, BLOB = Path("Data/com.apple.CoreML/model.mlmodel"), Path("Data/com.apple.CoreML/weights/weight.bin")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "sound.mlpackage"
    return built(path, lambda x: mb.linear(x=x, weight=WEIGHT, name="product"), {"x": X}, "iOS18", "fp16")


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "m.mlpackage"))


def edit_model(edit: Callable[[Any], None]) -> Callable[[Path], None]:
    """A damage done to the parsed specification."""

    def damage(package: Path) -> None:
        spec = model_class().FromString((package / MODEL).read_bytes())
        edit(spec)
        (package / MODEL).write_bytes(spec.SerializeToString())

    return damage


def renamed(spec: Any) -> None:
    spec.mlProgram.functions["other"].CopyFrom(spec.mlProgram.functions["main"])
    del spec.mlProgram.functions["main"]


def edit_operations(edit: Callable[[Any], None]) -> Callable[[Path], None]:
    return edit_model(lambda spec: edit(next(iter(spec.mlProgram.functions["main"].block_specializations.values())).operations))


def edit_manifest(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        manifest = json.loads((package / "Manifest.json").read_text())
        edit(manifest)
        (package / "Manifest.json").write_text(json.dumps(manifest))

    return damage


def edit_blob(edit: Callable[[bytearray], Any]) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        content = bytearray((package / BLOB).read_bytes())
        edit(content)
        (package / BLOB).write_bytes(content)

    return damage


def model_item(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]


def operation(operations: Any, kind: str) -> Any:
    return next(op for op in operations if op.type == kind)


def blob_value(operations: Any) -> Any:
    return next(op.attributes["val"] for op in operations if op.attributes["val"].WhichOneof("value") == "blobFileValue")


def link_out(package: Path) -> None:
    target = shutil.move(package / BLOB, package.parent / "weight.bin")
    (package / BLOB).symlink_to(target)


def immediate_value(operations: Any, name: str) -> Any:
    return next(op.attributes["val"] for op in operations if op.outputs[0].name.startswith(name)).immediateValue.tensor


def state(spec: Any) -> None:
    kind = spec.mlProgram.functions["main"].inputs[0].type
    kind.stateType.wrappedType.tensorType.CopyFrom(kind.tensorType)


# What is done to a sound package, and what the error must say.
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"manifest 'Manifest.json': is missing"),
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), r"manifest 'Manifest.json': is missing"),
    "manifest, not JSON": (lambda p: (p / "Manifest.json").write_text("{"), r"Manifest.json: does not name the model"),
    "manifest, not text": (lambda p: (p / "Manifest.json").write_bytes(b'{"\xff'), r"Manifest.json: does not name the model"),
    "manifest, no root": (
        edit_manifest(lambda m: m.pop("rootModelIdentifier")),
        r"does not name the model .*`rootModelIdentifier`",
    ),
    "manifest, another root": (
        edit_manifest(lambda m: m.update(rootModelIdentifier="x")),
        r"does not name the model \(got 'x'\)",
    ),
    "manifest, path out": (
        edit_manifest(lambda m: model_item(m).update(path="../../other/model.mlmodel")),
        r"model '../../other/model.mlmodel': leads out of the package",
    ),
    "manifest, path out and back": (
        edit_manifest(lambda m: model_item(m).update(path="../Data/com.apple.CoreML/model.mlmodel")),
        r"leads out of the package",
    ),
    "manifest, absolute path": (edit_manifest(lambda m: model_item(m).update(path="/etc/hosts")), r"'/etc/hosts': leads out"),
    "no model": (lambda p: (p / MODEL).unlink(), r"model 'com.apple.CoreML/model.mlmodel': is missing"),
    "model, not protobuf": (lambda p: (p / MODEL).write_bytes(b"\xff" * 9), r"model.mlmodel: is not a Core ML specification"),
    "model, empty": (lambda p: (p / MODEL).write_bytes(b""), r"is not an ML program \(expected mlProgram, got None\)"),
    "model, truncated": (
        lambda p: (p / MODEL).write_bytes((p / MODEL).read_bytes()[:-100]),
        r"model.mlmodel: is not a Core ML specification",
    ),
    "neural network": (
        edit_model(lambda s: s.neuralNetwork.SetInParent()),
        r"is not an ML program \(expected mlProgram, got neural",
    ),
    "version to come": (
        edit_model(lambda s: setattr(s, "specificationVersion", 99)),
        r"version is not known \(expected 6 to 10, got 99\)",
    ),
    "another function": (
        edit_model(renamed),
        r"does not hold the function \(expected main, got other\)",
    ),
    "another opset": (
        edit_model(lambda s: setattr(s.mlProgram.functions["main"], "opset", "CoreML5")),
        r"function main: its opset is not the specification's \(expected CoreML8, got CoreML5\)",
    ),
    "state": (edit_model(state), r"input x: is of a type that is not evaluated \(expected a tensor, got stateType\)"),
    "picture": (
        edit_model(lambda s: s.description.input[0].type.imageType.SetInParent()),
        r"inputs: x: is not an array \(got imageType\)",
    ),
    "description of another program": (
        edit_model(lambda s: setattr(s.description.output[0], "name", "z")),
        r"description of the outputs: differs from the program \(expected product, got z\)",
    ),
    "no weights": (lambda p: (p / BLOB).unlink(), r"weight file 'weights/weight.bin': is missing"),
    "weights linked out": (link_out, r"weight file 'weights/weight.bin': leads out of the package"),
    "weights named out": (
        edit_operations(lambda ops: setattr(blob_value(ops).blobFileValue, "fileName", "@model_path/../../../x.bin")),
        r"weight file '../../../x.bin': leads out of the package",
    ),
    "weights named elsewhere": (
        edit_operations(lambda ops: setattr(blob_value(ops).blobFileValue, "fileName", "/etc/hosts")),
        r"weight file '/etc/hosts': is not beside the model",
    ),
    "weights, header cut": (edit_blob(lambda b: b.__delitem__(slice(20, None))), r"too short for a weight file .*got 20 bytes"),
    "weights, data cut": (edit_blob(lambda b: b.__delitem__(slice(-64, None))), r"weight.bin at 64: the data run past the end"),
    "weights, metadata cut": (edit_blob(lambda b: b.__delitem__(slice(90, None))), r"at 64: the offset is out of range"),
    "weights, version": (
        edit_blob(lambda b: struct.pack_into("<I", b, 4, 3)),
        r"is of a version that is not known \(expected 2, got 3\)",
    ),
    "weights, no metadata": (
        edit_blob(lambda b: struct.pack_into("<I", b, 64, 0)),
        r"there are no metadata \(expected 0xdeadbeef",
    ),
    "weights, type": (
        edit_blob(lambda b: struct.pack_into("<I", b, 68, 7)),
        r"another type is stored \(expected fp16, got uint16\)",
    ),
    "weights, size": (
        edit_blob(lambda b: struct.pack_into("<Q", b, 72, 78)),
        r"another size is stored \(expected 80 bytes, got 78 bytes\)",
    ),
    "weights, data elsewhere": (edit_blob(lambda b: struct.pack_into("<Q", b, 80, 1 << 40)), r"the data run past the end"),
    "weights, padding": (
        edit_blob(lambda b: struct.pack_into("<Q", b, 88, 4)),
        r"other padding is stored \(expected 0 bits, got 4 bits\)",
    ),
    "offset out of range": (
        edit_operations(lambda ops: setattr(blob_value(ops).blobFileValue, "offset", 1 << 20)),
        r"weight.bin at 1048576: the offset is out of range",
    ),
    "offset between": (
        edit_operations(lambda ops: setattr(blob_value(ops).blobFileValue, "offset", 65)),
        r"weight.bin at 65: the offset is out of range \(expected a multiple of 64 below \d+, got 65\)",
    ),
    "offset near 2^64": (
        edit_operations(lambda ops: setattr(blob_value(ops).blobFileValue, "offset", 2**64 - 64)),
        r"the offset is out of range",
    ),
    "unknown operation": (
        edit_operations(lambda ops: setattr(operation(ops, "linear"), "type", "fourier")),
        r"operation fourier: is not known to the evaluator \(got 1 of them\)",
    ),
    "unknown parameter": (
        edit_operations(lambda ops: operation(ops, "linear").inputs["wait"].CopyFrom(operation(ops, "linear").inputs["weight"])),
        r"linear 'product_cast_fp16': has a parameter that is not known \(expected x, weight, bias, got wait\)",
    ),
    "no parameter": (
        edit_operations(lambda ops: operation(ops, "linear").inputs.pop("weight")),
        r"linear 'product_cast_fp16': misses a parameter \(expected weight\)",
    ),
    "parameter twice": (
        edit_operations(lambda ops: operation(ops, "linear").inputs["x"].arguments.add(name="x")),
        r"linear 'product_cast_fp16' x: is not one value \(expected 1, got 2\)",
    ),
    "value from nowhere": (
        edit_operations(lambda ops: setattr(operation(ops, "linear").inputs["x"].arguments[0], "name", "y")),
        r"linear 'product_cast_fp16' x: takes a value that nothing gives before \(got 'y'\)",
    ),
    "name given twice": (
        edit_operations(lambda ops: setattr(operation(ops, "linear").outputs[0], "name", "x")),
        r"linear 'product_cast_fp16': gives a name that is given already \(got 'x'\)",
    ),
    "control flow": (edit_operations(lambda ops: operation(ops, "linear").blocks.add()), r"holds blocks of operations"),
    "another float": (
        edit_operations(lambda ops: setattr(operation(ops, "linear").outputs[0].type.tensorType, "dataType", 13)),
        r"is of a type that is not evaluated \(expected a tensor, got type 13\)",
    ),
    "too few immediate values": (
        edit_operations(lambda ops: setattr(immediate_value(ops, "product_bias").bytes, "values", b"\0\0")),
        r"the stored values do not fit their type \(expected 8 of fp16, got 1\)",
    ),
    "immediate values of another type": (
        edit_operations(lambda ops: immediate_value(ops, "product_bias").floats.values.append(1.0)),
        r"the stored values do not fit their type \(expected 8 of fp16, got floats\)",
    ),
    "constant of another type": (
        edit_operations(lambda ops: setattr(operation(ops, "const").outputs[0].type.tensorType, "dataType", 23)),
        r"stores another type than it declares \(expected int32 \[\], got string \[\]\)",
    ),
    "no such output": (
        edit_model(lambda s: next(iter(s.mlProgram.functions["main"].block_specializations.values())).outputs.append("ghost")),
        r"output ghost: nothing gives it",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage(name: str, package: Path) -> None:
    damage, message = DAMAGES[name]
    damage(package)
    with pytest.raises(InputError) as caught:
        open_package(package)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_everything_wrong_is_said_at_once(package: Path) -> None:
    DAMAGES["unknown operation"][0](package)
    DAMAGES["description of another program"][0](package)
    DAMAGES["picture"][0](package)
    with pytest.raises(InputError) as caught:
        open_package(package)
    assert len(caught.value.complaints) == 3


def linear_output(operations: Any) -> Any:
    return operation(operations, "linear").outputs[0].type.tensorType


# What shows only when the program runs.
WRONG_RESULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another shape is declared": (
        edit_operations(lambda ops: setattr(linear_output(ops).dimensions[1].constant, "size", 9)),
        r"product_cast_fp16: is not of the declared kind and shape \(expected float \[2, 9\], got float \[2, 8\]\)",
    ),
    "another kind is declared": (
        edit_operations(lambda ops: setattr(linear_output(ops), "dataType", 23)),
        r"\(expected int \[2, 8\], got float \[2, 8\]\)",
    ),
    "arguments that do not go together": (
        edit_operations(lambda ops: operation(ops, "linear").inputs["weight"].CopyFrom(operation(ops, "linear").inputs["bias"])),
        r"linear 'product_cast_fp16': mat2 must be a matrix, got 1-D tensor",
    ),
    "one result too many": (
        edit_operations(lambda ops: operation(ops, "linear").outputs.add(name="z").type.tensorType.CopyFrom(linear_output(ops))),
        r"linear 'product_cast_fp16': gives another number of results \(expected 2, got 1\)",
    ),
    "a string where a number belongs": (
        edit_operations(lambda ops: operation(ops, "linear").inputs["bias"].CopyFrom(operation(ops, "cast").inputs["dtype"])),
        r"linear 'product_cast_fp16': expected a tensor, got 'fp16'",
    ),
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_wrong_results_are_named(name: str, package: Path) -> None:
    damage, message = WRONG_RESULTS[name]
    damage(package)
    with pytest.raises(InputError) as caught:
        evaluate(open_package(package), {"x": X})
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"input x: is missing"),
        ({"x": X, "y": X}, r"input y: is not the program's \(expected x\)"),
        ({"x": X[:, :4]}, r"input x: is not of the declared kind and shape \(expected float \[2, 5\], got float \[2, 4\]\)"),
        ({"x": X[0]}, r"expected float \[2, 5\], got float \[5\]"),
        ({"x": X.astype(complex)}, r"input x: is of another type \(expected fp32, got complex128\)"),
    ],
    ids=str,
)
def test_inputs_must_fit(sound: Path, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(open_package(sound), inputs)


def test_integers_must_fit(tmp_path: Path) -> None:
    ids = np.array([3, 1], np.int32)
    program = open_package(built(tmp_path / "m.mlpackage", lambda x: mb.gather(x=WEIGHT, indices=x), {"x": ids}))
    assert np.array_equal(evaluate(program, {"x": ids.astype(np.int64)}, "fp32").popitem()[1], WEIGHT[ids])
    with pytest.raises(InputError, match=r"input x: does not fit int32 \(got 1 to 2147483648\)"):
        evaluate(program, {"x": np.array([1, 1 << 31])})
    with pytest.raises(InputError, match=r"input x: is of another type \(expected int32, got float32\)"):
        evaluate(program, {"x": ids.astype(np.float32)})
    for wrong in (-1, 8):  # no more counting from the end since iOS 17
        with pytest.raises(InputError, match=rf"gather '.*': indices {wrong} to {wrong} are out of bounds 0 to 7"):
            evaluate(program, {"x": np.array([wrong, wrong], np.int32)})


@pytest.mark.parametrize("value", [3e9, np.nan, -np.inf])
def test_what_has_no_defined_result_is_an_error(value: float, tmp_path: Path) -> None:
    x = np.array([1.0], np.float32)
    program = open_package(built(tmp_path / "m.mlpackage", lambda x: mb.cast(x=x, dtype="int32"), {"x": x}))
    assert evaluate(program, {"x": x}).popitem()[1] == 1
    with pytest.raises(InputError, match="a value does not fit int32"):
        evaluate(program, {"x": np.float32([value])})


def test_precision_is_one_of_two(sound: Path) -> None:
    with pytest.raises(InputError, match=r"precision: is not known \(expected fp32 or fp16, got bf16\)"):
        evaluate(open_package(sound), {"x": X}, "bf16")


def test_flexible_sizes(tmp_path: Path) -> None:
    """A size that is known only when the program runs is whatever the input has."""
    rows = ct.RangeDim(1, 9)
    program = mb.program(input_specs=[mb.TensorSpec((get_new_symbol(), 5))], opset_version=ct.target.iOS17)(
        lambda x: mb.linear(x=x, weight=WEIGHT)
    )
    with conversion():
        model = ct.convert(
            program,
            inputs=[ct.TensorType("x", (rows, 5))],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(tmp_path / "m.mlpackage"))
        del model
    opened = open_package(tmp_path / "m.mlpackage")
    assert opened.inputs[0].shape == (None, 5)
    for count in (1, 4):
        x = np.full((count, 5), 2.0, np.float32)
        assert np.allclose(evaluate(opened, {"x": x}, "fp32").popitem()[1], x @ WEIGHT.T, rtol=1e-6)  # sums of five in fp32


QUIET = """
import logging, exporters.coreml.evaluate.proto as proto
model = proto.model_class()
assert model.FromString(b"").specificationVersion == 0
logging.getLogger("coremltools").warning("Failed to load _MLModelProxy: is still said afterwards")
"""


def test_importing_coremltools_is_quiet() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", QUIET], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == "Failed to load _MLModelProxy: is still said afterwards\n"


def test_news_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    with quiet_import():
        logging.getLogger("coremltools").warning("Failed to load _MLModelProxy: No module named 'coremltools.libcoremlpython'")
        logging.getLogger("coremltools").warning("something else")
    assert caplog.messages == ["something else"]


def test_without_coremltools(monkeypatch: pytest.MonkeyPatch, sound: Path) -> None:
    monkeypatch.setitem(sys.modules, "coremltools.proto", None)
    proto.model_class.cache_clear()
    with pytest.raises(InputError, match=r"coremltools: cannot be imported[^$]*pip install 'flash-deploy\[coreml\]'"):
        open_package(sound)


def test_the_evaluator_stands_alone() -> None:
    """It is evidence about what the exporter wrote only as long as it shares no code with it, nor with coremltools' converter."""
    folder = Path(proto.__file__).parent
    for file in folder.rglob("*.py"):
        for imported in re.findall(r"^\s*(?:from|import) (\S+)", file.read_text(), re.MULTILINE):
            if imported.startswith("exporters"):
                assert imported.startswith(("exporters.coreml.evaluate", "exporters.errors")), f"{file}: {imported}"
            if imported.startswith("coremltools"):
                assert imported == "coremltools.proto", f"{file}: {imported}"
