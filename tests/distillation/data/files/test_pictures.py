"""Foreign pictures as tensors: upright, opaque, square; what is none is refused."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from distillation.data.files.pictures import decoded_picture
from distillation.data.source import DataError
from tests.distillation.data.on_disk import encoded, halves, plain


def levels(content: bytes, resolution: int = 8) -> list[int]:
    """The one colour of a picture, in levels of eight bits."""
    picture = decoded_picture(content, resolution, "here")
    assert (picture.shape, picture.dtype) == ((3, resolution, resolution), torch.float32)
    values = ((picture + 1) * 127.5).round().flatten(1)
    assert (values == values[:, :1]).all()
    return values[:, 0].int().tolist()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (plain((255, 0, 51)), [255, 0, 51]),
        (plain((255, 0, 51, 0), mode="RGBA"), [255, 255, 255]),
        (plain((0, 0, 0, 51), mode="RGBA"), [204, 204, 204]),
        (plain((100, 0), mode="LA"), [255, 255, 255]),
        (plain(100, mode="L"), [100, 100, 100]),
        (plain(1, mode="1"), [255, 255, 255]),
        (Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), [100, 100, 100]),
    ],
    ids=["colour", "clear", "a fifth of black", "grey and clear", "grey", "one bit", "sixteen bits"],
)
def test_modes(picture: Image.Image, expected: list[int]) -> None:
    assert levels(encoded(picture)) == expected


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_forms(form: str) -> None:
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    got = levels(encoded(plain((200, 100, 50)), form, **options))
    assert np.allclose(got, [200, 100, 50], atol=2 if form == "JPEG" else 0)


def test_a_palette_s_clear_colour_is_laid_over_white() -> None:
    picture = plain(0, mode="P")
    picture.putpalette([10, 20, 30])
    assert levels(encoded(picture)) == [10, 20, 30]
    assert levels(encoded(picture, transparency=0)) == [255, 255, 255]


def test_the_middle_remains_and_the_short_side_fits() -> None:
    """A picture of 32 x 16: its middle is half red, half blue, whether it is laid down or stood up."""
    wide = decoded_picture(encoded(halves()), 16, "here")
    assert torch.equal(wide[:, :, :6], torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 16, 6))
    assert torch.equal(wide[:, :, -6:], torch.tensor([-1.0, -1, 1])[:, None, None].expand(3, 16, 6))
    tall = decoded_picture(encoded(halves().rotate(90, expand=True)), 16, "here")
    assert torch.equal(tall, wide.rot90(1, (1, 2)))


def test_scaling_is_pillow_s() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 32, 3), np.uint8))
    expected = ImageOps.fit(noise, (16, 16), Image.Resampling.LANCZOS)
    whole = noise.resize((16, 24), Image.Resampling.LANCZOS).crop((0, 4, 16, 20))
    got = decoded_picture(encoded(noise), 16, "here")
    assert torch.equal(got, torch.from_numpy(np.array(expected, np.float32)).permute(2, 0, 1) / 127.5 - 1)
    # cut and scaled in one: inside, where no filter reaches over the cut, the same as one after the other
    assert np.array_equal(np.array(expected)[3:-3], np.array(whole)[3:-3])


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 180), (6, -90), (8, 90)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_as_they_say(orientation: int, turned: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decoded_picture(encoded(halves(16, 16), form, exif=exif, quality=100), 16, "here")
    upright = decoded_picture(encoded(halves(16, 16).rotate(turned)), 16, "here")
    assert (got - upright).abs().mean() < 0.1  # two of JPEG's blocks meet at the border; a wrong turn makes 1 of it


def test_damaged_exif_leaves_a_picture_as_it_lies() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker of cameras"
    content = encoded(halves(16, 16), "PNG", exif=exif)
    at = content.index(b"MM\0*")
    damaged = content[: at + 8] + b"\xff\xff" + content[at + 10 :]  # as many tags as there is no room for
    chunk = content.index(b"eXIf")
    size = int.from_bytes(content[chunk - 4 : chunk])
    check = zlib.crc32(damaged[chunk : chunk + 4 + size]).to_bytes(4)
    damaged = damaged[: chunk + 4 + size] + check + damaged[chunk + 8 + size :]
    for exif_of in (content, damaged):
        assert decoded_picture(exif_of, 16, "here").shape == (3, 16, 16)


GIF = encoded(plain((1, 2, 3)), "GIF")
PICTURE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG", PICTURE[: len(PICTURE) // 2], PICTURE[:40] + bytes(40) + PICTURE[80:], GIF, b"<html></html>", b"\x80\x04."],
    ids=["nothing", "start", "half", "zeros inside", "another form", "a web page", "a pickle"],
)
def test_what_is_no_picture(content: bytes) -> None:
    with pytest.raises(
        DataError, match=r"here: is damaged, or no picture \(expected PNG, JPEG, WEBP, got .*\n.*replace or remove"
    ):
        decoded_picture(content, 8, "here")


@pytest.mark.parametrize("times", [1.5, 3])
def test_a_bomb(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Pillow warns of more pixels than its limit, and refuses twice as many: both are too many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(64 / times))
    with pytest.raises(DataError, match=f"here: is too large \\(expected at most {int(64 / times)} pixels"):
        decoded_picture(encoded(plain((1, 2, 3))), 8, "here")
