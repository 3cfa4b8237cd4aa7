"""A calibration: what is known of every matrix of a student, as a folder.

====================  ==================================================================================
``calibration.json``  of which student, with which prompts, and which weight has which arrays
``vectors.npz``       rows and columns of every :class:`~quantization.sensitivity.Sensitivity`
``grams/N.npy``       Gram matrices of products' inputs, mapped into memory when they are read
====================  ==================================================================================

Products that share an input (query, key and value) share its Gram matrix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from quantization.errors import Complaint, InputError
from quantization.files import UNREADABLE, write_arrays, write_bytes
from quantization.sensitivity import Sensitivity

FILE, VECTORS, GRAMS = "calibration.json", "vectors.npz", "grams"
Layer = Literal["linear", "convolution", "embedding"]
Key = tuple[str, str]
"""A weight: (component, tensor name)."""


class CalibrationError(InputError):
    """A calibration cannot be used."""


class CalibrationRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a calibration was made of.

    Attributes:
        fingerprint: of the student.
        prompts: what was drawn.
        seed: of the noise.
        height: picture height in pixels.
        width: picture width in pixels.
        timesteps: of the schedule.
        keep_t5: whether the third text encoder took part.
        max_sequence_length: its tokens.
        guidance: how pictures were guided; empty where they were not.
    """

    fingerprint: str
    prompts: tuple[str, ...]
    seed: int
    height: int
    width: int
    timesteps: tuple[float, ...]
    keep_t5: bool
    max_sequence_length: int
    guidance: dict[str, Any] = msgspec.field(default_factory=dict)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One weight: its squared gradients are in the vectors under its index; ``gram`` is the number of its Gram matrix.

    Attributes:
        component: whose it is.
        name: its tensor's name.
        layer: what kind of layer it is of.
        inputs: vectors that it is multiplied by in one picture (tokens times steps; pixels of a convolution's output).
        rounding: as :class:`~quantization.sensitivity.Sensitivity` has it.
        gram: the number of its Gram matrix.
    """

    component: str
    name: str
    layer: Layer
    inputs: int
    rounding: dict[int, float]
    gram: int | None = None


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    recipe: CalibrationRecipe
    entries: tuple[Entry, ...]


def gram_file(folder: Path, number: int) -> Path:
    """Where a Gram matrix lies."""
    return folder / GRAMS / f"{number}.npy"


class Calibration:
    """An opened calibration.

    Args:
        folder: where it lies.

    Raises:
        CalibrationError: it is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = msgspec.json.decode((folder / FILE).read_bytes(), type=_Content)
            with (folder / VECTORS).open("rb") as stream, np.load(stream, allow_pickle=False) as vectors:
                self._vectors = dict(vectors)
        except (*UNREADABLE, msgspec.MsgspecError) as error:
            remedy = "flash-deploy calibrate makes it"
            raise CalibrationError(
                "The calibration cannot be read.", [Complaint(str(folder), str(error) or type(error).__name__)], remedy
            ) from error
        self.recipe = content.recipe
        self._entries = {(entry.component, entry.name): (i, entry) for i, entry in enumerate(content.entries)}

    def check_student(self, fingerprint: str) -> None:
        """Refuse it for another student than its own.

        Raises:
            CalibrationError: the fingerprint is another's.
        """
        if self.recipe.fingerprint != fingerprint:
            complaint = Complaint(str(self.folder), "is of another student", fingerprint, self.recipe.fingerprint)
            raise CalibrationError(
                "The calibration cannot be used.", [complaint], "flash-deploy calibrate makes one of this student"
            )

    def weights(self) -> list[Key]:
        """The weights that it knows, in the order in which the student uses them last."""
        return list(self._entries)

    def entry(self, component: str, name: str) -> Entry:
        """What the index says of a weight that it knows."""
        return self._entries[component, name][1]

    def input_number(self, component: str, name: str) -> int | None:
        """The number of a weight's Gram matrix: products of one number share their inputs. None where it has none."""
        return self._entries[component, name][1].gram if (component, name) in self._entries else None

    def sensitivity(self, component: str, name: str) -> Sensitivity | None:
        """What is known of a weight; none for weights that the calibration did not meet.

        Raises:
            CalibrationError: its arrays are missing or damaged.
        """
        if (component, name) not in self._entries:
            return None
        index, entry = self._entries[component, name]
        try:
            rows, columns = self._vectors[f"{index}.rows"], self._vectors[f"{index}.columns"]
            gram = None if entry.gram is None else np.load(gram_file(self.folder, entry.gram), mmap_mode="r")
        except UNREADABLE as error:
            raise CalibrationError(
                "The calibration is damaged.", [Complaint(f"{self.folder}: {name}", str(error) or type(error).__name__)]
            ) from error
        arrays = [rows, columns, *([] if gram is None else [np.diagonal(gram)])]
        if not all(np.isfinite(array).all() and (array >= 0).all() for array in arrays):
            raise CalibrationError(
                "The calibration is damaged.", [Complaint(f"{self.folder}: {name}", "NaN or negative squares")]
            )
        return Sensitivity(rows, columns, entry.rounding, gram)


def save_calibration(
    folder: Path, recipe: CalibrationRecipe, entries: list[Entry], vectors: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write all but the Gram matrices, which are there already; the file that makes it a calibration comes last."""
    named = {
        f"{i}.{kind}": array for i, pair in enumerate(vectors) for kind, array in zip(("rows", "columns"), pair, strict=True)
    }
    write_arrays(folder / VECTORS, named)
    content = _Content(recipe=recipe, entries=tuple(entries))
    write_bytes(folder / FILE, msgspec.json.format(msgspec.json.encode(content), indent=1))
