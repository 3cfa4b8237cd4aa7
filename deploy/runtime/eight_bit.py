"""Pictures as others show them: 8 bits a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def to_8_bit(pictures: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded to nearest as in diffusers' ``numpy_to_pil``."""
    return (pictures * 255).round().astype(np.uint8)


def as_images(pictures: np.ndarray) -> list[Image.Image]:
    """Pictures ``[images, height, width, 3]`` in [0, 1], each as Pillow has it."""
    from PIL import Image

    return [Image.fromarray(picture) for picture in to_8_bit(pictures)]
