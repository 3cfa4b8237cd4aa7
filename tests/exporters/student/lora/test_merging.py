"""What a student with LoRAs is: another one, read as lazily as any, and known for what was merged into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from exporters.errors import StudentError
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.weights.lora import merge
from exporters.student.weights.lora.source import Lora, as_loras, parse_lora
from exporters.student.weights.weight import Weight
from tests.helpers import lora_files as files
from tests.helpers.student_files import same_weights


@pytest.fixture
def lora_file(students: dict[str, Student], tmp_path: Path) -> Path:
    made = files.products(students["tiny"], "transformer", "text_encoder_3")
    return files.write(tmp_path / "hyper.safetensors", files.diffusers(made))


WRITTEN = {
    "x.safetensors": ("x.safetensors", 1.0),
    "x.safetensors:0.125": ("x.safetensors", 0.125),
    "x.safetensors:-1e-2": ("x.safetensors", -0.01),
    r"C:\x.safetensors": (r"C:\x.safetensors", 1.0),
    r"C:\x.safetensors:2": (r"C:\x.safetensors", 2.0),
    "a:b:0.5": ("a:b", 0.5),
    "epoch:3:1": ("epoch:3", 1.0),
    "a:": ("a:", 1.0),
}


@pytest.mark.parametrize(("text", "read"), WRITTEN.items(), ids=WRITTEN)
def test_the_last_colon_before_a_number_splits(text: str, read: tuple[str, float]) -> None:
    lora = parse_lora(text)
    assert (str(lora.path), lora.scale) == read
    assert parse_lora(str(lora)) == lora


@pytest.mark.parametrize("text", ["x.safetensors:nan", "x.safetensors:-inf", ":1", ""])
def test_what_is_no_lora_and_no_scale(text: str) -> None:
    with pytest.raises(StudentError, match=r"FILE:SCALE, for example FILE:0.125"):
        parse_lora(text)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", True, None])
def test_a_scale_is_a_finite_number(scale: float) -> None:
    with pytest.raises(StudentError, match=r"x cannot be merged\.[\s\S]*the scale is wrong \(expected a finite number"):
        Lora(Path("x"), scale)


def test_loras_as_python_gives_them(tmp_path: Path) -> None:
    odd = tmp_path / "epoch:3"  # a path is a path, whatever is in its name
    assert as_loras([odd, "a:0.5", Lora(Path("b"), 2)]) == (Lora(odd), Lora(Path("a"), 0.5), Lora(Path("b"), 2.0))
    assert as_loras("a:0.5") == (Lora(Path("a"), 0.5),)  # one that is given alone is no list of letters


def test_fingerprints(students: dict[str, Student], lora_file: Path, tmp_path: Path) -> None:
    plain = students["tiny"]

    def fingerprint(*loras: str | Path) -> str:
        return open_student(plain.path, lora=loras).fingerprint()

    renamed = shutil.copy(lora_file, tmp_path / "other.safetensors")
    other = files.write(tmp_path / "third.safetensors", files.diffusers(files.products(plain, "transformer", seed=9)))
    assert fingerprint() == plain.fingerprint()
    assert fingerprint(lora_file) == fingerprint(f"{renamed}:1") == fingerprint(f"{lora_file}:1.0")
    different = [
        fingerprint(),
        fingerprint(lora_file),
        fingerprint(f"{lora_file}:0.5"),
        fingerprint(other),
        fingerprint(lora_file, other),
        fingerprint(other, lora_file),
        fingerprint(lora_file, lora_file),
    ]
    assert len(set(different)) == len(different)


def test_the_fingerprint_follows_what_peft_says_of_alpha(students: dict[str, Student], tmp_path: Path) -> None:
    made = files.products(students["tiny"], "transformer")
    folders = [files.peft(tmp_path / str(alpha), made, lora_alpha=alpha) for alpha in (1, 2)]
    one, two = (open_student(students["tiny"].path, lora=[folder]) for folder in folders)
    assert one.loras[0].sha256() == two.loras[0].sha256()  # the tensors are the same
    assert one.fingerprint() != two.fingerprint()


def test_a_student_notices_that_its_lora_is_written_to(students: dict[str, Student], lora_file: Path) -> None:
    opened = open_student(students["tiny"].path, lora=[lora_file])
    assert lora_file in opened.files()
    opened.check_unchanged()
    files.write(lora_file, files.diffusers(files.products(students["tiny"], "transformer")))
    with pytest.raises(StudentError, match=r"hyper.safetensors: has changed since the student was opened"):
        opened.check_unchanged()


def test_nothing_is_merged_before_it_is_read(
    students: dict[str, Student], lora_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight at a time, and again each time: what it holds is nobody's to keep."""
    merges = []
    monkeypatch.setattr(merge.Product, "apply", lambda change, rows: merges.append(rows.shape))
    opened = open_student(students["tiny"].path, lora=[lora_file])
    assert merges == []
    weight = opened.weights["transformer"]["proj_out.weight"]
    first, second = weight.load(), weight.load()
    assert merges == [(64, 48)] * 2
    assert first is not second
    assert first.flags.writeable  # its own, not the file's


def test_a_large_product_is_added_in_pieces(
    students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are independent of each other, DoRA's lengths too: pieces of three rows make the same sum."""
    plain = students["tiny"]
    made = files.products(plain, "transformer")
    tensors = files.diffusers(made) | {
        f"transformer.{module}.lora_magnitude_vector": np.linspace(1, 2, its.up.shape[0], dtype=np.float32)
        for (_, module), its in made.items()
    }
    opened = open_student(plain.path, lora=[files.write(tmp_path / "dora.safetensors", tensors)])
    whole = {name: opened.weights["transformer"][f"{name}.weight"].load() for _, name in made}
    monkeypatch.setattr(merge, "_PIECE_ELEMENTS", 3 * 48)
    for name, value in whole.items():
        np.testing.assert_allclose(opened.weights["transformer"][f"{name}.weight"].load(), value, rtol=1e-5, atol=1e-6)


def test_a_row_of_length_zero_stays_zero() -> None:
    """Where PEFT divides by zero."""

    def weight(values: np.ndarray) -> Weight:
        return Weight(values.shape, values.dtype, lambda: values, "x")

    ones = weight(np.ones((2, 1), np.float32))
    product = merge.Product(weight(np.zeros((1, 3), np.float32)), ones, ((0, 2),), 1.0, weight(np.ones(2, np.float32)))
    made = merge.merged(weight(np.array([[0, 0, 0], [0, 3, 4]], np.float32)), [product]).load()
    np.testing.assert_allclose(made, [[0, 0, 0], [0, 0.6, 0.8]], rtol=1e-6)


def test_layers_of_t5_do_not_matter_without_it(students: dict[str, Student], lora_file: Path) -> None:
    opened = open_student(students["tiny"].path, without=("text_encoder_3",), lora=[lora_file])
    assert opened.loras[0].unused == ("text_encoder_3",)
    assert opened.notes[-1].endswith("rank 4; its part of text_encoder_3 is not used: that is not there")


def test_a_lora_beside_the_weights_that_is_named(students: dict[str, Student], tiny_folder: Path) -> None:
    """Neither refused nor said to be left out; the folder's other files are as they were."""
    made = files.products(students["tiny"], "transformer")
    file = files.write(tiny_folder / "pytorch_lora_weights.safetensors", files.diffusers(made))
    with pytest.raises(StudentError, match=rf"What to do: merge it with --lora {file}; or draw without it: --ignore-lora"):
        open_student(tiny_folder)
    opened = open_student(tiny_folder, lora=[file])
    assert (opened.adapters, len(opened.loras), len(opened.notes)) == ((), 1, 1)
    assert not same_weights(opened, students["tiny"])

    second = files.write(tiny_folder / "lora" / "second.safetensors", files.diffusers(made))
    with pytest.raises(StudentError, match=rf"a LoRA lies beside the weights \(lora/second.safetensors\)[\s\S]*--lora {second};"):
        open_student(tiny_folder, lora=[file])
    assert open_student(tiny_folder, lora=[file], ignore_lora=True).adapters == (second,)
    assert open_student(tiny_folder, lora=[file, second.parent]).adapters == ()


def test_a_link_in_a_hubs_cache_is_the_file_itself(students: dict[str, Student], tmp_path: Path) -> None:
    """``snapshots/REVISION`` holds links to ``blobs``: PEFT's folder and its files are given as they lie there."""
    cache = tmp_path / "models--someone--flash"
    made = files.products(students["tiny"], "transformer")
    real = files.peft(tmp_path / "real", made)
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in real.iterdir():
        shutil.copy(file, cache / "blobs" / file.name.upper())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name.upper()}")
    assert len(open_student(students["tiny"].path, lora=[snapshot]).loras[0].files) == 2
