"""Students in a hub client's cache: by id, by the cache's own folder, and by what their snapshots are called."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from deploy.build import BuildRequest
from deploy.build.describe import _student
from deploy.build.plan import settle
from exporters.errors import StudentError
from exporters.student.hub import hub_cache, located
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers.student_files import edit_json, same_weights

COMMIT, OTHER = "0123abcdef0123abcdef0123abcdef0123abcdef", "89" * 20
ID = "org/sd3-turbo"


@pytest.fixture
def cache(students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With one student in two revisions, as the hub's client keeps it: files are links to blobs."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--org--sd3-turbo"
    (model / "blobs").mkdir(parents=True)
    (model / "refs" / "pr").mkdir(parents=True)
    for commit in (COMMIT, OTHER):
        snapshot = model / "snapshots" / commit
        shutil.copytree(students["tiny"].path, snapshot)
        for file in (path for path in snapshot.rglob("*") if path.is_file()):
            blob = model / "blobs" / f"{commit[:4]}-{'-'.join(file.relative_to(snapshot).parts)}"
            file.rename(blob)
            file.symlink_to(os.path.relpath(blob, file.parent))
    (model / "refs" / "main").write_text(COMMIT)
    (model / "refs" / "pr" / "1").write_text(OTHER)
    return model


@pytest.mark.parametrize(
    ("given", "commit"),
    [(ID, COMMIT), (f"{ID}@main", COMMIT), (f"{ID}@pr/1", OTHER), (f"{ID}@{OTHER}", OTHER), (f"{ID}@{COMMIT[:7]}", COMMIT)],
)
def test_an_id_is_looked_up(given: str, commit: str, cache: Path, students: dict[str, Student]) -> None:
    opened = open_student(given)
    assert opened.path == cache / "snapshots" / commit
    assert same_weights(students["tiny"], opened)


def test_the_caches_own_folders(cache: Path) -> None:
    for folder in (cache, cache / "snapshots"):
        assert open_student(folder).path == cache / "snapshots" / COMMIT
    shutil.rmtree(cache / "refs")
    shutil.rmtree(cache / "snapshots" / OTHER)
    assert located(cache) == cache / "snapshots" / COMMIT  # the only one


def test_a_path_that_exists_wins(
    cache: Path, students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(students["tiny"].path, tmp_path / ID)
    assert open_student(ID).path == Path(ID)


def test_components_and_loras_by_id(cache: Path, students: dict[str, Student]) -> None:
    opened = open_student(students["tiny"].path, components={"vae": f"{ID}@pr/1"})
    assert all(cache in file.parents for file in opened.elsewhere["vae"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "org/none",
            r"org/none is not here; it looks like a model hub's id, and nothing is downloaded[\s\S]*`hf download org/none`",
        ),
        (f"{ID}@v2", r"revision v2 is not one snapshot of the cache"),
        (f"{ID}@../../x", r"revision ../../x is not one snapshot"),
        (f"{ID}@fffffff", r"revision fffffff is not one snapshot"),
    ],
)
def test_what_is_not_in_the_cache(given: str, message: str, cache: Path) -> None:
    with pytest.raises(StudentError, match=message):
        open_student(given)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert hub_cache() == Path.home() / ".cache" / "huggingface" / "hub"
    for variable, below in (("XDG_CACHE_HOME", "huggingface/hub"), ("HF_HOME", "hub"), ("HF_HUB_CACHE", "")):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        assert hub_cache() == tmp_path / variable / below


def test_a_bundle_is_called_what_the_model_is(cache: Path, tmp_path: Path) -> None:
    request = BuildRequest(output=tmp_path / "b", student=Path(ID), height=64, width=64, keep_t5=False, max_sequence_length=9)
    planned = settle(request)
    assert _student(planned.student, "sha256:0").name == "sd3-turbo"
    assert not any("guidance" in note for note in planned.notes)  # the model's name says that it needs none


def test_a_component_that_is_null_is_not_listed(tiny_folder: Path) -> None:
    edit_json(tiny_folder / "model_index.json", text_encoder_3=None)
    assert json.loads((tiny_folder / "model_index.json").read_text())["text_encoder_3"] is None
    assert not open_student(tiny_folder).has_t5
