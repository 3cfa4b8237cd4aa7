"""Pictures and latents as files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.bundle.told import Told
from deploy.errors import Complaint, InputError
from deploy.runtime.eight_bit import to_8_bit
from deploy.runtime.upon import HEADLINE as UPON
from exporters.scales import Size
from quantization.files import UNREADABLE, check_regular, check_writable, write_array, write_bytes

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_PIXELS = 1 << 27


def check_output(file: Path, images: int = 1) -> None:
    """Refuse an output that could not be written, before any work is done.

    Args:
        file: as of :func:`save_pictures`.
        images: how many pictures there will be.

    Raises:
        InputError: unknown suffix, or no folder to write to.
    """
    if file.suffix.lower() not in (*PICTURE_SUFFIXES, ".npy"):
        complaint = Complaint("-o", "unknown kind of file", " or ".join((*PICTURE_SUFFIXES, ".npy")), str(file))
        raise InputError("The pictures cannot be written.", [complaint])
    for target in files_of(file, images):
        check_writable(target, "-o", "The pictures cannot be written.")


def load_latents(file: Path) -> np.ndarray:
    """Initial noise from an .npy file; pickled arrays are refused.

    Raises:
        InputError: no such file, or not a plain array.
    """
    try:
        check_regular(file)
        array = np.load(file, allow_pickle=False)
    except (*UNREADABLE, MemoryError) as error:
        raise InputError("The latents cannot be read.", [Complaint(str(file), str(error), "a plain .npy array")]) from error
    if not isinstance(array, np.ndarray) or not array.ndim:
        got = f"a single number, {array}" if isinstance(array, np.ndarray) else "an .npz archive"
        complaint = Complaint(str(file), "not an array of latents", "a plain .npy array", got)
        raise InputError("The latents cannot be read.", [complaint])
    return array


def load_image(file: Path, where: str) -> Image.Image:
    """A picture's file, turned as its camera says.

    Args:
        file: PNG, JPEG or WebP.
        where: the option that names it.

    Raises:
        InputError: there is none, or it is no picture, or too large a one.
    """
    from PIL import Image, ImageOps

    try:
        check_regular(file)
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > LARGEST_PIXELS:
                complaint = Complaint(
                    str(file), "is too large", f"{LARGEST_PIXELS} pixels", f"{picture.width} x {picture.height}"
                )
                raise InputError(UPON, [complaint])
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (*UNREADABLE, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        complaint = Complaint(
            f"{where} {file}", str(error).split("'", 1)[0].strip() or type(error).__name__, "a PNG, JPEG or WebP file"
        )
        raise InputError(UPON, [complaint]) from error


def squeezed(image: Image.Image, size: Size) -> str:
    """What to know of a picture whose aspect is another; empty where it is not.

    Args:
        image: of Pillow.
        size: height and width of what is drawn.
    """
    height, width = size
    if abs(image.width * height - image.height * width) <= 0.01 * image.height * width:
        return ""
    return f"the picture is {image.width} x {image.height} and is squeezed into {width} x {height}: crop it to that aspect first"


def save_pictures(pictures: np.ndarray, file: Path, told: Sequence[Told] = ()) -> list[Path]:
    """Write pictures ``[images, height, width, 3]`` in [0, 1]: all as one array, or each as 8-bit RGB.

    Args:
        pictures: to write.
        file: where.
        told: what each was drawn with, to be written into PNG files; nothing is where it is empty.

    Returns:
        The files: ``file`` itself, or ``name-0.png``, ``name-1.png``, ... where there are several pictures.

    Raises:
        InputError: the disk is full, or the file cannot be written after all.
    """
    files = files_of(file, len(pictures))
    if file.suffix.lower() == ".npy":
        write_array(file, pictures)
        return files
    for i, (picture, target) in enumerate(zip(to_8_bit(pictures), files, strict=True)):
        write_picture(target, picture, told[i] if told else None)
    return files


def write_picture(file: Path, picture: np.ndarray, told: Told | None = None) -> None:
    """Write one picture of 8-bit RGB ``[height, width, 3]``, as the file's suffix says.

    Args:
        file: where.
        picture: to write.
        told: what it was drawn with; a PNG file says it.

    Raises:
        InputError: the disk is full, or the file cannot be written after all.
    """
    write_bytes(file, encoded_picture(picture, file.suffix, told))


def encoded_picture(picture: np.ndarray, suffix: str, told: Told | None = None) -> bytes:
    """One picture of 8-bit RGB ``[height, width, 3]`` as a file with that suffix has it."""
    from PIL import Image

    encoded, kind = io.BytesIO(), Image.registered_extensions()[suffix.lower()]
    more = {"pnginfo": told.png_info()} if told is not None and kind == "PNG" else {}
    Image.fromarray(picture).save(encoded, format=kind, **more)
    return encoded.getvalue()


class Previews:
    """Writes what pictures would be after each step: ``name-step-1.png``, ..., beside ``name.png``.

    Args:
        file: where the pictures go, as of :func:`save_pictures`.
        images: how many there will be.

    Raises:
        InputError: the pictures are to be one array.
    """

    def __init__(self, file: Path, images: int) -> None:
        if file.suffix.lower() not in PICTURE_SUFFIXES:
            complaint = Complaint("--previews", "are written beside a picture's file", " or ".join(PICTURE_SUFFIXES), str(file))
            raise InputError("The previews cannot be written.", [complaint])
        self._files, self._picture = files_of(file, images), 0

    def __call__(self, step: int, steps: int, picture: np.ndarray) -> None:
        """One picture's step; pictures follow one another."""
        file = self._files[self._picture]
        write_picture(file.with_stem(f"{file.stem}-step-{step + 1}"), to_8_bit(picture[None])[0])
        self._picture += step + 1 == steps


def files_of(file: Path, images: int) -> list[Path]:
    """The files that some pictures become."""
    if images == 1 or file.suffix.lower() == ".npy":
        return [file]
    return [file.with_stem(f"{file.stem}-{i}") for i in range(images)]
