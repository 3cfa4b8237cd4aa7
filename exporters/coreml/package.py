"""Write a program as an ``.mlpackage``: each weight is read, encoded and written once, one at a time.

::

    NAME.mlpackage/Manifest.json
    NAME.mlpackage/Data/com.apple.CoreML/model.mlmodel         the program, as Core ML's protobuf
    NAME.mlpackage/Data/com.apple.CoreML/weights/weight.bin    its constants, by Apple's own writer
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import types as python_types
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporters.coreml.backend import CoreMLProtoExporter, MILProtoExporter, Var, ct, proto
from exporters.coreml.program import About, StageProgram
from exporters.coreml.weight_file import ALIGNMENT_BYTES, entries
from quantization.errors import Complaint, SchemeError
from quantization.files import REMEDY, WritingError, write_bytes, write_text, writing

ROOT = "com.apple.CoreML"
MODEL, WEIGHTS = f"Data/{ROOT}/model.mlmodel", f"Data/{ROOT}/weights/weight.bin"
AUTHOR = "flash-deploy"


class _Streamed(MILProtoExporter):  # type: ignore[misc]
    """coremltools' writer, but that placeholders are read when their turn comes."""

    def __init__(self, stage: StageProgram, weights: Path, version: int, progress: Callable[[int], None] | None) -> None:
        super().__init__(stage.program, str(weights), version)
        self._loads, self._progress = stage.constants.loads, progress
        self.complaints: list[Complaint] = []

    def check(self) -> None:
        """Refuse what could not be stored, all at once."""
        if self.complaints:
            raise SchemeError("Some weights cannot be stored.", self.complaints)

    def get_milproto_value(self, var: Var) -> Any:
        if var.name not in self._loads:
            return super().get_milproto_value(var)
        try:
            value = np.ascontiguousarray(self._loads[var.name]())
        except SchemeError as error:
            self.complaints += error.complaints
            value = np.zeros(var.shape, var.val.dtype)
        assert value.shape == tuple(var.shape), f"{var.name}: read {value.shape}, promised {var.shape}"
        if self._progress:
            self._progress(value.nbytes)
        # Both functions below ask a variable for nothing but these.
        loaded = python_types.SimpleNamespace(
            val=value.view(var.val.dtype) if value.dtype.itemsize == 1 else value,
            dtype=var.dtype,
            sym_type=var.sym_type,
            name=var.name,
            op=var.op,
            shape=var.shape,
            rank=var.rank,
        )
        return super().get_milproto_value(loaded)


def write_package(
    stage: StageProgram,
    folder: Path,
    descriptions: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
    about: About | None = None,
) -> Path:
    """Write one program to ``folder``, a path that ends in ``.mlpackage`` and does not exist.

    Args:
        stage: the program.
        folder: where to.
        descriptions: of inputs and outputs, by name.
        progress: called with the number of bytes just written.
        about: what the package says of itself.

    Raises:
        SchemeError: weights that cannot be stored, all at once; nothing is left behind.
        WritingError: the disk is full; likewise.
    """
    weights = (folder / WEIGHTS).parent
    weights.mkdir(parents=True)
    try:
        version = getattr(ct.target, stage.system).value
        with _weights_of(folder):
            writer = _Streamed(stage, weights, version, progress)
            program = writer.export()
            writer.check()
            writer.blob_writers.clear()  # closes the weight file
            _check_weights(folder / WEIGHTS)
        model = CoreMLProtoExporter(stage.program, program, "", "", None, "mlprogram", "mil", version).export(version)
        _describe(model, descriptions or {}, about)
        write_bytes(folder / MODEL, model.SerializeToString(deterministic=True))
        # To the last byte as Core ML's tools write it: loading a package writes this file again.
        write_text(folder / "Manifest.json", json.dumps(_manifest(), indent=4) + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


@contextlib.contextmanager
def _weights_of(folder: Path) -> Iterator[None]:
    """Apple's writer says only that its file could not be written."""
    try:
        with writing(folder):
            yield
    except RuntimeError as error:
        if "[MIL FileWriter]" not in str(error):
            raise
        got = f"{shutil.disk_usage(folder.parent).free / 1e6:.2f} MB free"
        complaint = Complaint(str(folder), f"its weights cannot be written: {error}", got=got)
        raise WritingError(f"{folder.name} cannot be written.", [complaint], REMEDY) from error


def _check_weights(file: Path) -> None:
    """See that the last weight is all there: when Apple's writer closes its file on a full disk, it says nothing."""
    if not file.exists():
        return
    end, missing = ALIGNMENT_BYTES, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
        try:
            for _, entry in entries(stream):
                end = entry.end
        except EOFError:
            raise missing from None
    if file.stat().st_size < end:
        raise missing


def _describe(model: proto.Model_pb2.Model, descriptions: Mapping[str, str], about: About | None) -> None:
    from importlib import metadata

    told = model.description.metadata
    told.author = AUTHOR
    told.versionString = metadata.version("flash-deploy")
    told.userDefined["com.github.apple.coremltools.version"] = ct.__version__
    if about is not None:
        told.shortDescription, told.license = about.description, about.licence
        for name, fact in about.facts.items():
            told.userDefined[name] = fact
    for port in (*model.description.input, *model.description.output):
        port.shortDescription = descriptions.get(port.name, "")


def _manifest() -> dict[str, Any]:
    """Core ML's table of contents; its identifiers are made of the paths, so that equal packages are equal byte for byte."""
    items = {"model.mlmodel": "CoreML Model Specification", "weights": "CoreML Model Weights"}
    entries = {
        str(uuid.uuid5(uuid.NAMESPACE_URL, name)).upper(): {
            "author": ROOT,
            "description": description,
            "name": name,
            "path": f"{ROOT}/{name}",
        }
        for name, description in items.items()
    }
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": next(iter(entries))}
