"""Pictures and latents as files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from deploy.errors import Complaint, InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(file: Path) -> None:
    """Refuse an output that could not be written, before any work is done.

    Raises:
        InputError: unknown suffix, or no folder to write to.
    """
    if file.suffix.lower() not in (*PICTURE_SUFFIXES, ".npy"):
        complaint = Complaint("-o", "unknown kind of file", " or ".join((*PICTURE_SUFFIXES, ".npy")), str(file))
        raise InputError("The pictures cannot be written.", [complaint])
    if file.is_dir():
        raise InputError("The pictures cannot be written.", [Complaint("-o", "is a folder", "a file", str(file))])
    if not file.parent.is_dir():
        raise InputError(
            "The pictures cannot be written.",
            [Complaint("-o", "no such folder", got=str(file.parent))],
            "make the folder first",
        )


def load_latents(file: Path) -> np.ndarray:
    """Initial noise from an .npy file; pickled arrays are refused.

    Raises:
        InputError: no such file, or not a plain array.
    """
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError("The latents cannot be read.", [Complaint(str(file), str(error), "a plain .npy array")]) from error
    if not isinstance(array, np.ndarray):
        raise InputError(
            "The latents cannot be read.",
            [Complaint(str(file), "not a single array", "a plain .npy array", "an .npz archive")],
        )
    return array


def save_pictures(pictures: np.ndarray, file: Path) -> list[Path]:
    """Write pictures ``[images, height, width, 3]`` in [0, 1]: all as one array, or each as 8-bit RGB.

    Returns:
        The files: ``file`` itself, or ``name-0.png``, ``name-1.png``, ... where there are several pictures.
    """
    if file.suffix.lower() == ".npy":
        draft = file.with_name(f".{file.name}.partial")
        with draft.open("wb") as stream:
            np.save(stream, pictures)
        draft.replace(file)
        return [file]
    from PIL import Image

    files = [file] if len(pictures) == 1 else [file.with_stem(f"{file.stem}-{i}") for i in range(len(pictures))]
    for picture, target in zip(to_8_bit(pictures), files, strict=True):
        draft = target.with_name(f".{target.stem}.partial{target.suffix}")
        Image.fromarray(picture).save(draft)
        draft.replace(target)
    return files


def to_8_bit(pictures: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded to nearest as in diffusers' ``numpy_to_pil``."""
    return (pictures * 255).round().astype(np.uint8)
