"""The table of docs/devices/README.md is what the tiers and the students' shapes give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.sizes import BEGIN, END, PAGE, SHAPES, cell, into
from tests.helpers.sparse_student import make_sparse_student

ROWS = {
    tuple(part.strip(" `") for part in line.split("|")[1:3]): line for line in PAGE.read_text("utf-8").splitlines() if "|" in line
}


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sizes")
    return {name: make_sparse_student(shape, folder / str(i)) for i, (name, shape) in enumerate(SHAPES.items())}


@pytest.mark.parametrize(("tier", "model_format"), [("desktop-cpu", "onnx"), ("phone", "coreml"), ("browser", "onnx")])
def test_rows_are_what_a_build_says(tier: str, model_format: str, students: dict[str, Path]) -> None:
    cells = [part.strip() for part in ROWS[tier, model_format].split("|")[4:-1]]
    assert cells == [cell(student, tier, model_format) for student in students.values()], "run python -m tests.docs.sizes"


def test_only_the_table_is_replaced() -> None:
    assert into(f"a\n{BEGIN}\nold\n{END}\nb\n", "new") == f"a\n{BEGIN}\n\nnew\n\n{END}\nb\n"
