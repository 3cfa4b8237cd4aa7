"""A picture that is drawn upon, and the mask of what is drawn anew: looked at, and brought to the bundle's size.

As diffusers' ``VaeImageProcessor`` does it: pictures are resized by Lanczos's filter, whatever their aspect; of a mask, white (at
least half) is drawn anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from deploy.bundle.manifest import Manifest
from deploy.errors import Complaint, InputError
from exporters.image_to_image import DEFAULT_STRENGTH, first_step, not_drawn_upon
from exporters.scales import Size


class PillowImage(Protocol):
    """An image of Pillow's, which is not loaded for the sake of its name."""

    @property
    def mode(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def convert(self, mode: str, /) -> Any: ...


Picture: TypeAlias = PillowImage | np.ndarray
"""Of Pillow, in any size; or numbers in [0, 1] of the drawn size, ``[height, width, 3]``, of a mask ``[height, width]``."""
HEADLINE = "The picture cannot be drawn upon."


@dataclass(frozen=True)
class Upon:
    """What is drawn upon.

    Attributes:
        picture: ``[1, 3, height, width]`` in [0, 1].
        first: index of the first step that is made.
        mask: ``[1, 1, height / 8, width / 8]``, 1 where it is drawn anew and 0 where it stays; none where all of it may change.
    """

    picture: np.ndarray
    first: int
    mask: np.ndarray | None = None


def checked_upon(
    image: Picture | None, strength: float | None, mask: Picture | None, manifest: Manifest, size: Size
) -> Upon | None:
    """What is asked for, brought to the picture's size.

    Args:
        image: what is drawn upon; none where there is nothing.
        strength: how much of the schedule is gone through, above 0 to 1; None for diffusers' 0.6.
        mask: what of it is drawn anew.
        manifest: of the bundle.
        size: height and width in pixels of what is drawn.

    Raises:
        InputError: an argument is wrong, or the bundle cannot.
    """
    if image is None:
        given = [name for name, value in (("strength", strength), ("mask", mask)) if value is not None]
        if given:
            raise InputError(HEADLINE, [Complaint(f"--{name}", "does nothing without --image") for name in given])
        return None
    _check_bundle(manifest)
    steps = len(manifest.sampling.timesteps)
    first = first_step(_checked_strength(DEFAULT_STRENGTH if strength is None else strength), steps)
    if first == steps:
        raise InputError(HEADLINE, [Complaint("--strength", "leaves no step to be made", "more than 0", f"{strength:g}")])
    pixels = np.ascontiguousarray(_pixels(image, size, "--image", 3).transpose(2, 0, 1)[None])
    if mask is None:
        return Upon(pixels, first)
    scale = manifest.picture.pixels_per_latent
    anew = (_pixels(mask, size, "--mask", 1)[::scale, ::scale, 0] >= 0.5).astype(np.float32)
    return Upon(pixels, first, anew[None, None])


def _check_bundle(manifest: Manifest) -> None:
    if why := not_drawn_upon(manifest.sampling.method, manifest.sampling.scales):
        raise InputError(HEADLINE, [Complaint("--image", why)], "build a bundle of another schedule")
    if manifest.has("vae_encoder"):
        return
    remedy = "build it with --vae-encoder" if manifest.layout == "native" else "build one of --layout native, with --vae-encoder"
    raise InputError(HEADLINE, [Complaint("--image", "the bundle has no VAE encoder")], remedy)


def _checked_strength(strength: float) -> float:
    number = isinstance(strength, int | float | np.number) and not isinstance(strength, bool)
    if not number or not math.isfinite(strength) or not 0 <= strength <= 1:
        raise InputError(HEADLINE, [Complaint("--strength", "wrong", "a number from 0 to 1", repr(strength))])
    return float(strength)


def _pixels(picture: Picture, size: Size, where: str, channels: int) -> np.ndarray:
    """``[height, width, channels]`` in [0, 1], fp32."""
    if not isinstance(picture, np.ndarray):
        return _resized(picture, size, where, channels)
    array = picture[..., None] if channels == 1 and picture.ndim == 2 else picture
    if array.shape != (*size, channels):
        expected = f"a picture of Pillow, or [{', '.join(map(str, (*size, channels)))}]"
        raise InputError(HEADLINE, [Complaint(where, "wrong shape", expected, str(list(picture.shape)))])
    if array.dtype.kind != "f" or not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        got = f"{array.dtype}, {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else str(array.dtype)
        raise InputError(HEADLINE, [Complaint(where, "is out of range", "floats in [0, 1]", got)])
    return array.astype(np.float32)


def _resized(picture: PillowImage, size: Size, where: str, channels: int) -> np.ndarray:
    from PIL import Image

    if not isinstance(picture, Image.Image):
        raise InputError(HEADLINE, [Complaint(where, "is no picture", "one of Pillow, or an array", type(picture).__name__)])
    if picture.mode[0] in "IF":  # Pillow would cut them off at 255
        raise InputError(HEADLINE, [Complaint(where, "has more than 8 bits a channel", "8 bits", picture.mode)], "save it with 8")
    height, width = size
    if channels == 3:
        fitted = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    else:  # in diffusers' order: a mask is resized as it is, and made grey afterwards
        fitted = picture.resize((width, height), Image.Resampling.LANCZOS).convert("L")
    return (np.asarray(fitted, np.float32) / 255).reshape(height, width, channels)
