from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from exporters.errors import StudentError
from exporters.student.weights.checkpoint import SafetensorsFile

RNG = np.random.default_rng(7)
DTYPES = [np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64)]


def opened(file: Path, tensors: dict[str, np.ndarray]) -> SafetensorsFile:
    save_file(tensors, file)
    return SafetensorsFile(file, "vae")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_views_of_what_was_saved(dtype: np.dtype, tmp_path: Path) -> None:
    tensors = {
        name: np.asarray(8 * RNG.standard_normal(shape)).astype(dtype)
        for name, shape in (("a", (3, 5)), ("b", ()), ("c", (0, 4)), ("d", (7,)))
    }
    weights = opened(tmp_path / "a.safetensors", tensors).weights(list(tensors), "vae")
    for name, weight in weights.items():
        loaded = weight.load()
        assert (loaded.dtype, loaded.shape) == (weight.dtype, weight.shape) == (dtype, tensors[name].shape)
        assert loaded.tobytes() == tensors[name].tobytes()
        assert not loaded.flags.owndata


def test_writing_to_a_view_does_not_reach_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    weight = opened(file, {"a": np.ones(4, np.float32)}).weights(["a"], "vae")["a"]
    before = file.read_bytes()
    weight.load()[0] = 5  # torch shares memory only with what can be written to
    assert file.read_bytes() == before


def test_paths_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "stu\udcffdent"
    folder.mkdir()
    save_file({"a": np.ones(4, np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(folder / "a.safetensors")
    with pytest.raises(StudentError, match="its path is not valid UTF-8"):
        SafetensorsFile(folder / "a.safetensors", "vae")


def test_the_file_that_was_opened_is_read_whatever_takes_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    weight = opened(file, {"a": np.ones(4, np.float32)}).weights(["a"], "vae")["a"]
    save_file({"b": np.zeros(9, np.float32)}, tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").replace(file)
    assert weight.load().tolist() == [1, 1, 1, 1]
