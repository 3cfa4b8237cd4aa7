"""Pictures and latents as files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
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
    probe = _draft(_numbered(file, 0))
    try:
        if file.is_dir():
            raise InputError("The pictures cannot be written.", [Complaint("-o", "is a folder", "a file", str(file))])
        if not file.parent.is_dir():
            raise InputError(
                "The pictures cannot be written.",
                [Complaint("-o", "no such folder", got=str(file.parent))],
                "make the folder first",
            )
        probe.touch()
        probe.unlink()
    except OSError as error:
        complaint = Complaint("-o", error.strerror or str(error), "a file that can be written", str(file))
        raise InputError("The pictures cannot be written.", [complaint]) from error


def load_latents(file: Path) -> np.ndarray:
    """Initial noise from an .npy file; pickled arrays are refused.

    Raises:
        InputError: no such file, or not a plain array.
    """
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError("The latents cannot be read.", [Complaint(str(file), str(error), "a plain .npy array")]) from error
    if not isinstance(array, np.ndarray) or not array.ndim:
        got = f"a single number, {array}" if isinstance(array, np.ndarray) else "an .npz archive"
        complaint = Complaint(str(file), "not an array of latents", "a plain .npy array", got)
        raise InputError("The latents cannot be read.", [complaint])
    return array


def save_pictures(pictures: np.ndarray, file: Path) -> list[Path]:
    """Write pictures ``[images, height, width, 3]`` in [0, 1]: all as one array, or each as 8-bit RGB.

    Returns:
        The files: ``file`` itself, or ``name-0.png``, ``name-1.png``, ... where there are several pictures.

    Raises:
        InputError: the disk is full, or the file cannot be written after all.
    """
    if file.suffix.lower() == ".npy":
        _write(file, lambda draft: np.save(draft, pictures))
        return [file]
    from PIL import Image

    files = [file] if len(pictures) == 1 else [_numbered(file, i) for i in range(len(pictures))]
    for picture, target in zip(to_8_bit(pictures), files, strict=True):
        _write(target, Image.fromarray(picture).save)
    return files


def _numbered(file: Path, index: int) -> Path:
    return file.with_stem(f"{file.stem}-{index}")


def _draft(file: Path) -> Path:
    """Where a file is written before it takes its place; of the same kind, for writers go by the suffix."""
    return file.with_name(f".{file.stem}.partial{file.suffix}")


def _write(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all; a link stays a link, and what it leads to is written."""
    file = file.resolve()
    draft = _draft(file)
    try:
        write(draft)
        draft.replace(file)
    except OSError as error:
        complaint = Complaint(str(file), error.strerror or str(error))
        raise InputError("The pictures cannot be written.", [complaint], "free some space or write elsewhere") from error
    finally:
        draft.unlink(missing_ok=True)


def to_8_bit(pictures: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded to nearest as in diffusers' ``numpy_to_pil``."""
    return (pictures * 255).round().astype(np.uint8)
