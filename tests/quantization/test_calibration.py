"""What was measured of a student, as a folder: nothing of it is believed that cannot be read whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantization.calibration import (
    GRAMS,
    VECTORS,
    Calibration,
    CalibrationError,
    CalibrationRecipe,
    Entry,
    gram_file,
    save_calibration,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A calibration of one weight of two outputs and three inputs."""
    recipe = CalibrationRecipe(
        fingerprint="sha256:1",
        prompts=("one",),
        seed=0,
        height=64,
        width=64,
        timesteps=(1000.0,),
        keep_t5=False,
        max_sequence_length=16,
    )
    (tmp_path / GRAMS).mkdir()
    np.save(gram_file(tmp_path, 0), np.eye(3, dtype=np.float32))
    entry = Entry(component="transformer", name="w", layer="linear", inputs=5, rounding={0: 1.0}, gram=0)
    save_calibration(tmp_path, recipe, [entry], [(np.ones(2), np.ones(3))])
    return tmp_path


def test_what_is_saved_is_read(folder: Path) -> None:
    calibration = Calibration(folder)
    assert calibration.weights() == [("transformer", "w")]
    sensitivity = calibration.sensitivity("transformer", "w")
    assert sensitivity is not None
    assert np.array_equal(sensitivity.columns, np.ones(3))
    assert calibration.sensitivity("transformer", "another") is None


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another file": lambda content: b"not an archive",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_vectors_are_refused(damage: Callable[[bytes], bytes], folder: Path) -> None:
    file = folder / VECTORS
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CalibrationError, match=r"cannot be read[\s\S]*flash-deploy calibrate makes it"):
        Calibration(folder)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_gram_matrix_is_refused(damage: Callable[[bytes], bytes], folder: Path) -> None:
    file = gram_file(folder, 0)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CalibrationError, match="The calibration is damaged"):
        Calibration(folder).sensitivity("transformer", "w")


def test_it_is_of_one_student(folder: Path) -> None:
    Calibration(folder).check_student("sha256:1")
    with pytest.raises(CalibrationError, match=r"is of another student \(expected sha256:2, got sha256:1\)"):
        Calibration(folder).check_student("sha256:2")
