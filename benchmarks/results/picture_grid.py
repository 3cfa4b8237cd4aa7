"""Prompts x bundles, the worst first: each picture beside the student's, and where both differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.quality.drawing import Drawn, Wanted
from benchmarks.quality.pictures import PictureQuality
from benchmarks.results.record import Results

GAIN = 8  # differences are shown this many times as large
LOSSLESS_PIXELS = 256 * 256  # larger pictures are shown in lossy WebP: the figures beside them are of the originals


@dataclass(frozen=True)
class Pictures:
    """What a target drew of the prompts that are shown.

    Attributes:
        bundle: name.
        target: name.
        wanted: prompts and seeds.
        drawn: one picture for each.
        reference: the fp32 student's.
    """

    bundle: str
    target: str
    wanted: tuple[Wanted, ...]
    drawn: tuple[Drawn, ...]
    reference: tuple[Drawn, ...]


@dataclass(frozen=True)
class Cell:
    """One bundle's picture of a prompt: data URIs of it and of its difference from the student's, and their figures."""

    label: str
    source: str
    difference: str
    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Row:
    """One prompt: the student's picture, and the bundles', the worst first."""

    prompt: str
    seed: int
    reference: str
    cells: tuple[Cell, ...]


def grid(pictures: Sequence[Pictures], results: Results) -> list[Row]:
    """The grid.

    Args:
        pictures: of all entries that were compared, the reference itself left out or not.
        results: with the figures.
    """
    figures = {
        (entry.bundle, entry.target.removesuffix(", remote"), picture.prompt, picture.seed): picture
        for entry in results.entries
        if entry.quality is not None
        for picture in entry.quality.pictures
    }
    rows: dict[Wanted, tuple[Drawn, list[Cell]]] = {}
    for shown in pictures:
        for one, drawn, truth in zip(shown.wanted, shown.drawn, shown.reference, strict=True):
            if drawn is truth:
                continue  # the student itself
            quality = figures[shown.bundle, shown.target, one.prompt, one.seed]
            _, cells = rows.setdefault(one, (truth, []))
            cells.append(_cell(f"{shown.bundle}, {shown.target}", drawn, truth, quality))
    grid_rows = [
        Row(one.prompt, one.seed, data_uri(truth.picture), tuple(sorted(cells, key=lambda cell: cell.psnr_db)))
        for one, (truth, cells) in rows.items()
    ]
    return sorted(grid_rows, key=lambda row: row.cells[0].psnr_db)


def data_uri(picture: np.ndarray) -> str:
    """A picture ``[height, width, 3]`` in [0, 1] as a page can hold it."""
    image = Image.fromarray(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8))
    out = io.BytesIO()
    if picture.shape[0] * picture.shape[1] <= LOSSLESS_PIXELS:
        image.save(out, "png")
    else:
        image.save(out, "webp", quality=90)
    kind = "png" if out.getvalue().startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def _cell(label: str, drawn: Drawn, truth: Drawn, quality: PictureQuality) -> Cell:
    away = GAIN * np.abs(drawn.picture - truth.picture)
    return Cell(label, data_uri(drawn.picture), data_uri(away), quality.psnr_db, quality.ssim)
