"""Small data sets on disk, in every form, and what is wrong with them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def plain(colour: Any, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, size, colour)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """A picture's file."""
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def halves(width: int = 32, height: int = 16) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def write_folder(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Files by name, in folders where the names say so."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def write_tar(
    file: Path, members: Mapping[str, bytes | str] | list[tuple[str, bytes | str]], form: int = tarfile.USTAR_FORMAT
) -> Path:
    """A tar file; a list may have a name twice."""
    with tarfile.open(file, "w", format=form) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file
