"""A sheet of pictures: a row for each caption, a column for whoever drew it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["sheet"]

TILE_PIXELS, MARGIN_PIXELS, LINE_PIXELS = 128, 8, 18


def sheet(captions: Sequence[str], columns: Mapping[str, np.ndarray]) -> bytes:
    """The sheet as a PNG, captions under their rows.

    Args:
        captions: of the rows.
        columns: pictures ``[captions, height, width, 3]`` in [0, 1] by name.
    """
    import io

    from PIL import Image, ImageDraw, ImageFont

    across, down = TILE_PIXELS + MARGIN_PIXELS, TILE_PIXELS + LINE_PIXELS + MARGIN_PIXELS
    font = ImageFont.load_default(13)
    width = max(across * len(columns), *(int(font.getlength(caption)) + MARGIN_PIXELS for caption in captions))
    size = (MARGIN_PIXELS + width, LINE_PIXELS + 2 * MARGIN_PIXELS + down * len(captions))
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for column, (name, pictures) in enumerate(columns.items()):
        left = MARGIN_PIXELS + column * across
        draw.text((left, MARGIN_PIXELS), name, fill="black", font=font)
        for row, picture in enumerate(pictures):
            top = LINE_PIXELS + 2 * MARGIN_PIXELS + row * down
            tile = Image.fromarray(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8))
            page.paste(tile.resize((TILE_PIXELS, TILE_PIXELS), Image.Resampling.LANCZOS), (left, top))
            draw.rectangle((left - 1, top - 1, left + TILE_PIXELS, top + TILE_PIXELS), outline="gray")
    for row, caption in enumerate(captions):
        top = LINE_PIXELS + 2 * MARGIN_PIXELS + row * down + TILE_PIXELS
        draw.text((MARGIN_PIXELS, top + 2), caption, fill="black", font=font)
    stream = io.BytesIO()
    page.save(stream, "PNG")
    return stream.getvalue()
