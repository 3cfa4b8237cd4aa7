"""Open a ``.mlpackage`` folder: its manifest, its specification, its weight files, none of them outside of it.

The layout (https://apple.github.io/coremltools/mlmodel/Format/Model.html)::

    name.mlpackage/
      Manifest.json                             says which item is the model
      Data/com.apple.CoreML/model.mlmodel       the specification, a protobuf
      Data/com.apple.CoreML/weights/weight.bin  "@model_path/weights/weight.bin" in it
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from exporters.coreml.evaluate.blob import REMEDY, BlobFile
from exporters.coreml.evaluate.check import check_operations
from exporters.coreml.evaluate.program import Program, read_program
from exporters.coreml.evaluate.proto import model_class
from exporters.errors import Complaint, ExportError

MANIFEST = "Manifest.json"
MODEL_PATH = "@model_path/"
# Specification versions and the opsets that come with them: iOS 15 to iOS 26.
OPSETS = {6: "CoreML5", 7: "CoreML6", 8: "CoreML7", 9: "CoreML8", 10: "CoreML9"}


class _Item(msgspec.Struct):
    path: str


class _Manifest(msgspec.Struct, rename="camel"):
    file_format_version: str
    item_info_entries: dict[str, _Item]
    root_model_identifier: str


def open_package(path: Path | str, function: str = "main") -> Program:
    """Read the package and check all of it that can be checked without computing.

    Args:
        path: the ``.mlpackage`` folder.
        function: which of its functions.

    Returns:
        The program; its weights stay in their file until an operation needs them.

    Raises:
        ExportError: the folder is damaged or incomplete, leads out of itself, is not an ML program with such a function, or
            holds operations that the evaluator does not know; everything that is wrong at once.
    """
    folder = Path(path)
    model_file = _model_file(folder)
    spec = _specification(model_file, function)
    program = read_program(spec.mlProgram, OPSETS[spec.specificationVersion], _Blobs(folder, model_file.parent), function)
    complaints = [*_check_description(_described(spec, function), program), *check_operations(program)]
    if complaints:
        raise ExportError(f"The Core ML package {folder} cannot be evaluated.", complaints)
    return program


class _Blobs:
    """The package's weight files, opened when they are first named."""

    def __init__(self, package: Path, model_folder: Path) -> None:
        self._package, self._model_folder = package, model_folder
        self._open: dict[str, BlobFile] = {}

    def __call__(self, name: str) -> BlobFile:
        if name not in self._open:
            if not name.startswith(MODEL_PATH):
                complaint = Complaint(f"weight file {name!r}", "is not beside the model", expected=f"{MODEL_PATH}...")
                raise ExportError(f"The Core ML package {self._package} cannot be read.", [complaint])
            file = _inside(self._package, self._model_folder, name.removeprefix(MODEL_PATH), "weight file")
            self._open[name] = BlobFile(file)
        return self._open[name]


def _inside(package: Path, base: Path, relative: str, what: str) -> Path:
    """The file ``relative`` to ``base``, if there is such a file and neither its path nor a link in it leaves the package."""
    file, pure = base / relative, PurePosixPath(relative)
    problem = ""
    if pure.is_absolute() or ".." in pure.parts or not _is_inside(file, package):
        problem = "leads out of the package"
    elif not file.is_file():
        problem = "is missing"
    if problem:
        complaint = Complaint(f"{what} {relative!r}", problem, got=str(file))
        raise ExportError(f"The Core ML package {package} cannot be read.", [complaint], REMEDY)
    return file


def _is_inside(file: Path, package: Path) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(package))


def _model_file(package: Path) -> Path:
    """The specification's file, as the manifest says."""
    manifest_file = _inside(package, package, MANIFEST, "manifest")
    try:
        manifest = msgspec.json.decode(manifest_file.read_bytes(), type=_Manifest)
        item = manifest.item_info_entries[manifest.root_model_identifier]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        complaint = Complaint(MANIFEST, "does not name the model", got=str(error))
        raise ExportError(f"The Core ML package {package} cannot be read.", [complaint], REMEDY) from error
    return _inside(package, package / "Data", item.path, "model")


def _specification(file: Path, function: str) -> Any:
    """Parse the protobuf; it is an ML program of a version that is known, with the function."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        spec = model_class().FromString(file.read_bytes())
    except DecodeError as error:
        damaged = Complaint(str(file), "is not a Core ML specification", got=str(error))
        raise ExportError("A Core ML package cannot be read.", [damaged], REMEDY) from error
    kind, functions = spec.WhichOneof("Type"), sorted(spec.mlProgram.functions)
    complaint: Complaint | None = None
    if kind != "mlProgram":
        complaint = Complaint(str(file), "is not an ML program", "mlProgram", str(kind))
    elif spec.specificationVersion not in OPSETS:
        versions = f"{min(OPSETS)} to {max(OPSETS)}"
        complaint = Complaint(str(file), "the specification's version is not known", versions, str(spec.specificationVersion))
    elif function not in functions:
        complaint = Complaint(str(file), "does not hold the function", function, ", ".join(functions) or "none")
    if complaint:
        raise ExportError("A Core ML package cannot be evaluated.", [complaint])
    return spec


def _described(spec: Any, function: str) -> Any:
    """The interface of a function: the model's own, or one of several."""
    several = {described.name: described for described in spec.description.functions}
    return several.get(function, spec.description)


def _check_description(description: Any, program: Program) -> list[Complaint]:
    """The interface that applications see names what the program takes and gives."""
    complaints = []
    for what, described, ports in (
        ("inputs", description.input, program.inputs),
        ("outputs", description.output, program.outputs),
    ):
        names, expected = sorted(feature.name for feature in described), sorted(port.name for port in ports)
        if names != expected:
            where = f"description of the {what}"
            complaints.append(Complaint(where, "differs from the program", ", ".join(expected), ", ".join(names)))
        complaints += [
            Complaint(f"{what}: {feature.name}", "is not an array", got=str(feature.type.WhichOneof("Type")))
            for feature in described
            if feature.type.WhichOneof("Type") != "multiArrayType"
        ]
    return complaints
