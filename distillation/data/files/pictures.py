"""Foreign pictures as networks take them: upright, opaque, square, of one size."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from distillation.data.source import DataError
from exporters.errors import Complaint

__all__ = ["SUFFIXES", "decoded_picture"]

#: File names of pictures end so.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")  # whatever the name says; Pillow reads many others, in code that few have looked at
#: What Pillow raises of files that are damaged or none.
_UNDECODABLE = (
    OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, AttributeError, OverflowError, struct.error,
    zlib.error,
)  # fmt: skip
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_REMEDY = "replace or remove it, and its caption: a sample that is passed over would change all that come after it"


def decoded_picture(content: bytes, resolution: int, where: str) -> Tensor:
    """A picture: ``[3, resolution, resolution]`` in [-1, 1], fp32.

    It is turned as its EXIF says, laid over white where it is transparent, and scaled by Lanczos so that its short side fits; of
    the long side its middle remains. Colours are taken as sRGB, whatever profile comes with them.

    Args:
        content: of a PNG, JPEG or WebP file; of several frames the first is taken.
        resolution: side of the square.
        where: for complaints.

    Raises:
        DataError: it cannot be decoded, or has more pixels than Pillow takes for harmless.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of EXIF that is damaged: viewers show such a picture as it lies
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
                picture = _over_white(_eight_bits(ImageOps.exif_transpose(opened)))
    except _BOMBS as error:
        limit = f"at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise DataError("A picture cannot be read.", [Complaint(where, "is too large", limit, str(error))], _REMEDY) from error
    except _UNDECODABLE as error:
        complaint = Complaint(where, "is damaged, or no picture", ", ".join(_FORMATS), _said(error))
        raise DataError("A picture cannot be read.", [complaint], _REMEDY) from error
    square = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square, np.float32)).permute(2, 0, 1).contiguous() / 127.5 - 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8: Pillow's own conversion cuts it off at 255, and what is not black comes out white."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture, np.float32) / 257).round().clip(0, 255).astype(np.uint8))


def _over_white(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _said(error: Exception) -> str:
    """Without the stream's address, which differs from run to run."""
    return "none of them" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
