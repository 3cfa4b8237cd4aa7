"""Functions of one package: each computes what its own package does, and equal weights are stored once."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporters.coreml.functions
from exporters.coreml.evaluate import evaluate, open_package
from exporters.coreml.functions import add_function
from exporters.coreml.package import MODEL, WEIGHTS
from exporters.errors import ExportError
from quantization.files import WritingError
from tests.helpers.packages import built, conversion, ct, mb

RNG = np.random.default_rng(0)
WEIGHT, HALF = RNG.standard_normal((8, 64)).astype(np.float32), RNG.standard_normal((8, 64)).astype(np.float16)
CODES, SCALES = RNG.integers(-8, 8, (8, 64)).astype(np.int8), RNG.random((8, 2)).astype(np.float32)
TABLE = {rows: RNG.standard_normal((rows, 64)).astype(np.float32) for rows in (3, 5, 6)}


def network(rows: int) -> Callable[..., Any]:
    """A table of its own, and matrices that all have: constants, and what is decompressed."""

    def build(x: Any) -> Any:
        x = mb.add(x=x, y=TABLE[rows], name="positions")
        dense = mb.constexpr_blockwise_shift_scale(data=CODES, scale=SCALES, name="dense")
        halved = mb.cast(x=mb.const(val=HALF, name="half"), dtype="fp32", name="wide")
        both = mb.add(x=mb.linear(x=x, weight=WEIGHT, name="product"), y=mb.linear(x=x, weight=dense, name="coded"), name="both")
        return mb.add(x=both, y=mb.matmul(x=x, y=halved, transpose_y=True, name="other"), name="out")

    return build


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A package for each size."""
    folder = tmp_path_factory.mktemp("alone")
    inputs = {rows: {"x": np.zeros((rows, 64), np.float32)} for rows in TABLE}
    return {rows: built(folder / f"{rows}.mlpackage", network(rows), inputs[rows], "iOS18") for rows in TABLE}


@pytest.fixture(scope="module")
def joined(alone: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = Path(shutil.copytree(alone[3], tmp_path_factory.mktemp("joined") / "joined.mlpackage"))
    assert [add_function(package, f"rows_{rows}", alone[rows]) for rows in (5, 6)] == [TABLE[5].nbytes, TABLE[6].nbytes]
    return package


def test_each_function_computes_what_its_package_does(alone: dict[int, Path], joined: Path) -> None:
    for rows, function in ((3, "main"), (5, "rows_5"), (6, "rows_6")):
        given = {"x": RNG.standard_normal((rows, 64)).astype(np.float32)}
        [(name, mine)] = evaluate(open_package(joined, function), given).items()
        assert np.array_equal(mine, evaluate(open_package(alone[rows]), given)[name])


def test_what_is_alike_is_stored_once(alone: dict[int, Path], joined: Path) -> None:
    sizes = {rows: (alone[rows] / WEIGHTS).stat().st_size for rows in TABLE}
    assert sum(TABLE[rows].nbytes for rows in (5, 6)) <= (joined / WEIGHTS).stat().st_size - sizes[3] <= TABLE[6].nbytes * 2.2
    stored = WEIGHT.nbytes + HALF.nbytes + SCALES.nbytes
    assert sum(sizes.values()) - (joined / WEIGHTS).stat().st_size >= 2 * stored


def constants(function: Any) -> dict[str, np.ndarray]:
    """By name; coremltools' reader numbers those that have none."""
    values = {re.sub(r"_\d+$", "", op.name): op.outputs[0].val for op in function.operations if op.op_type == "const"}
    return {**values, "count": np.array(len(values))}


def test_it_is_what_coremltools_makes(alone: dict[int, Path], joined: Path, tmp_path: Path) -> None:
    """Functions, ports and default; and every weight is read as coremltools' own reader reads it."""
    from coremltools.converters.mil.frontend.milproto.load import load

    theirs = ct.utils.MultiFunctionDescriptor()
    for rows, function in ((3, "main"), (5, "rows_5"), (6, "rows_6")):
        theirs.add_function(str(alone[rows]), "main", function)
    theirs.default_function_name = "main"
    with conversion():
        ct.utils.save_multifunction(theirs, str(tmp_path / "theirs.mlpackage"))
        specs = [ct.models.MLModel(str(p), skip_model_load=True).get_spec() for p in (joined, tmp_path / "theirs.mlpackage")]
        mine, other = (
            load(spec, spec.specificationVersion, str((package / WEIGHTS).parent))
            for spec, package in zip(specs, (joined, tmp_path / "theirs.mlpackage"), strict=True)
        )
    described = [
        {f.name: [(p.name, p.type.multiArrayType.shape) for p in (*f.input, *f.output)] for f in spec.description.functions}
        for spec in specs
    ]
    assert described[0] == described[1]
    assert [(spec.description.defaultFunctionName, len(spec.description.input)) for spec in specs] == [("main", 0)] * 2
    assert mine.functions.keys() == other.functions.keys()
    for name in mine.functions:
        one, two = (constants(program.functions[name]) for program in (mine, other))
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[constant], two[constant]) for constant in one)
    assert (joined / WEIGHTS).stat().st_size <= (tmp_path / "theirs.mlpackage" / WEIGHTS).stat().st_size


def test_a_function_that_is_not_there(joined: Path) -> None:
    with pytest.raises(ExportError, match=r"does not hold the function .expected rows_7, got main, rows_5, rows_6"):
        open_package(joined, "rows_7")


def test_a_weight_that_was_appended_is_read(alone: dict[int, Path], tmp_path: Path) -> None:
    """What the comparison above would not see if both functions read the first one's."""
    package = Path(shutil.copytree(alone[3], tmp_path / "m.mlpackage"))
    add_function(package, "rows_5", alone[5])
    file = package / WEIGHTS
    stored = bytearray(file.read_bytes())
    at = stored.rindex(TABLE[5].tobytes())
    stored[at : at + 4] = np.float32(1e6).tobytes()
    file.write_bytes(stored)
    given = {"x": np.zeros((5, 64), np.float32)}
    [(name, changed)] = evaluate(open_package(package, "rows_5"), given).items()
    assert not np.allclose(changed, evaluate(open_package(alone[5]), given)[name])
    assert (package / MODEL).is_file()


def test_a_full_disk_is_one_complaint(alone: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    package = Path(shutil.copytree(alone[3], tmp_path / "m.mlpackage"))
    monkeypatch.setattr(exporters.coreml.functions, "aligned", full)  # what is appended begins with it
    with pytest.raises(WritingError, match="No space left on device"):
        add_function(package, "rows_5", alone[5])
