from __future__ import annotations

from pathlib import Path

import pytest

from tests.imports import (
    FLAT_FILES,
    ORDER,
    STARTS_COMMANDS,
    arrows,
    between_rooms,
    circles,
    flat_files,
    imported,
    modules,
    started,
    upward,
)


@pytest.fixture(scope="module")
def drawn() -> dict[str, set[str]]:
    return arrows(modules())


def test_every_package_is_drawn(drawn: dict[str, set[str]]) -> None:
    assert {name.split(".")[0] for name in drawn} == set(ORDER)
    assert len(drawn) > 200


def test_no_circle_of_files_or_of_rooms(drawn: dict[str, set[str]]) -> None:
    assert circles(drawn) == []
    assert circles(between_rooms(drawn)) == []


def test_imports_go_one_way(drawn: dict[str, set[str]]) -> None:
    """flash_deploy → deploy → benchmarks → distillation → exporters → quantization; nothing points back."""
    assert upward(drawn) == []


def test_one_file_starts_what_lies_above_it() -> None:
    assert {name for name, _ in started(modules())} == {STARTS_COMMANDS}


def test_a_folder_can_be_read_at_a_glance() -> None:
    assert {folder: count for folder, count in flat_files(modules()).items() if count > FLAT_FILES} == {}


def test_the_drawing_finds_what_it_is_to_find(tmp_path: Path) -> None:
    candidates = {"exporters.a", "exporters.b", "exporters.c", "deploy.d", "exporters"}
    lazy = "def f():\n    from exporters import b\n    import exporters.c as c\n    from exporters.a import deploy\n"
    assert imported(lazy, candidates) == {"exporters.b", "exporters.c", "exporters.a"}
    graph = {"exporters.a": {"exporters.b"}, "exporters.b": {"exporters.c"}, "exporters.c": {"exporters.b", "deploy.d"}}
    assert circles(graph) == [["exporters.b", "exporters.c"]]
    assert upward(graph) == [("exporters.c", "deploy.d")]
    rooms = {
        "exporters.onnx.a": {"exporters.student.b"},
        "exporters.student.b": set(),
        "exporters.student.c": {"exporters.onnx.d"},
    }
    assert circles(rooms) == []
    assert circles(between_rooms(rooms)) == [["exporters.onnx", "exporters.student"]]
    file = tmp_path / "study.py"
    file.write_text('command = ["-m", "deploy.cli", "build"]\nother = "deploy.cli.main is named in a sentence"\n')
    assert started({"benchmarks.study": file}) == [("benchmarks.study", "deploy")]
