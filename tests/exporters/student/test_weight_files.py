from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers.student_files import WEIGHTS, same_weights, shard

STEM = "diffusion_pytorch_model"


def copy(file: Path, name: str) -> None:
    shutil.copy(file, file.with_name(name))


def two_sets(folder: Path, first: str, second: str) -> str:
    """What is said of two sets of weights in the transformer's folder."""
    with pytest.raises(StudentError) as caught:
        open_student(folder)
    assert f"transformer has two sets of weights, {first} and {second}" in str(caught.value).splitlines()[0]
    assert f"{folder / 'transformer'}: holds more than one set of weights" in str(caught.value)
    return caught.value.remedy


def test_an_index_beside_a_newer_single_file_is_nobodys_choice(tiny_folder: Path) -> None:
    folder = tiny_folder / "transformer"
    whole = (folder / WEIGHTS).read_bytes()
    shard(folder, STEM)
    (folder / WEIGHTS).write_bytes(whole)
    assert "remove the one that is stale" in two_sets(tiny_folder, WEIGHTS, f"{WEIGHTS}.index.json")


def test_two_stems_are_two_sets(tiny_folder: Path) -> None:
    copy(tiny_folder / "transformer" / WEIGHTS, "model.safetensors")
    two_sets(tiny_folder, WEIGHTS, "model.safetensors")


def test_two_indices_of_one_variant(tiny_folder: Path) -> None:
    shard(tiny_folder / "transformer", STEM, "fp16")
    copy(tiny_folder / "transformer" / f"{WEIGHTS}.index.fp16.json", f"{STEM}.fp16.safetensors.index.json")
    two_sets(tiny_folder, f"{STEM}.fp16.safetensors.index.json", f"{WEIGHTS}.index.fp16.json")


def test_a_variant_decides(students: dict[str, Student], tiny_folder: Path) -> None:
    folder = tiny_folder / "transformer"
    copy(folder / WEIGHTS, "model.safetensors")
    copy(folder / WEIGHTS, f"{STEM}.fp16.safetensors")
    assert "--variant" in two_sets(tiny_folder, WEIGHTS, "model.safetensors")
    assert same_weights(students["tiny"], open_student(tiny_folder, variant="fp16"))


def test_a_variant_beside_the_plain_files_is_no_second_set(tiny_folder: Path) -> None:
    copy(tiny_folder / "transformer" / WEIGHTS, f"{STEM}.fp16.safetensors")
    assert open_student(tiny_folder).notes == ()


def test_older_names_of_shards(students: dict[str, Student], tiny_folder: Path) -> None:
    folder = tiny_folder / "transformer"
    shard(folder, STEM)
    index = folder / f"{WEIGHTS}.index.json"
    text = index.read_text()
    for i in (1, 2):
        old, new = f"{STEM}-0000{i}-of-00002.safetensors", f"{STEM}-0000{i}-of-00002.fp16.safetensors"
        (folder / old).rename(folder / new)
        text = text.replace(old, new)
    index.unlink()
    (folder / f"{WEIGHTS}.index.fp16.json").write_text(text)
    assert same_weights(students["tiny"], open_student(tiny_folder))
    (folder / f"{WEIGHTS}.index.fp16.json").unlink()
    with pytest.raises(StudentError, match=r"transformer has shards without their index") as caught:
        open_student(tiny_folder)
    assert f"{STEM}-00001-of-00002.fp16.safetensors" in str(caught.value)
    assert "download the index" in caught.value.remedy


def test_shards_that_the_index_does_not_name_are_told(tiny_folder: Path) -> None:
    shard(tiny_folder / "transformer", STEM)
    copy(tiny_folder / "transformer" / f"{STEM}-00001-of-00002.safetensors", f"{STEM}-00001-of-00003.safetensors")
    (note,) = open_student(tiny_folder).notes
    assert note == f"transformer: shards that are not read (its index does not name them): {STEM}-00001-of-00003.safetensors"


def test_other_weights_in_a_components_folder_are_told(tiny_folder: Path) -> None:
    copy(tiny_folder / "vae" / WEIGHTS, "sdxl-vae.safetensors")
    assert open_student(tiny_folder).notes == (f"vae: files that are not read ({WEIGHTS} is): sdxl-vae.safetensors",)


def test_weights_under_another_name_are_named(tiny_folder: Path) -> None:
    (tiny_folder / "vae" / WEIGHTS).rename(tiny_folder / "vae" / "sdxl-vae.safetensors")
    with pytest.raises(StudentError, match=r"no weight file \(expected .* got sdxl-vae.safetensors\)"):
        open_student(tiny_folder)


def test_a_checkpoint_at_the_root_is_not_read(tiny_folder: Path) -> None:
    save_file({"x": np.ones(3, np.float32)}, tiny_folder / "sd3.5_medium.safetensors")
    (note,) = open_student(tiny_folder).notes
    assert note.startswith("not read, the component folders are: sd3.5_medium.safetensors")
