"""Pictures drawn with a choice of schemes, against the student's own."""

from __future__ import annotations

import msgspec
import numpy as np

from deploy.errors import Complaint, InputError
from exporters.streamed.pipeline import Drawn


class DrawnErrors(msgspec.Struct, frozen=True, kw_only=True):
    """What pictures drawn with a choice are like, against the student's own.

    Attributes:
        mean_square: error of the pictures, in [0, 1] squared.
        psnr_db: mean over the pictures.
        psnr_p5_db: of the worst of twenty.
        latent_db: signal-to-noise ratio of the latents.
    """

    mean_square: float
    psnr_db: float
    psnr_p5_db: float
    latent_db: float


def compare(reference: Drawn, drawn: Drawn) -> DrawnErrors:
    """Pictures and latents against those of the student.

    Raises:
        InputError: something is not finite.
    """
    if not all(tensor.isfinite().all() for tensor in (*vars(reference).values(), *vars(drawn).values())):
        raise InputError("A picture cannot be compared.", [Complaint("pictures", "NaN or infinite values")])
    squares = (reference.pictures - drawn.pictures).double().square().mean(dim=(1, 2, 3)).numpy()
    psnr = -10 * np.log10(np.maximum(squares, 1e-12))  # 120 dB stands for equal
    moved = float((reference.latents - drawn.latents).double().square().sum())
    return DrawnErrors(
        mean_square=float(squares.mean()),
        psnr_db=float(psnr.mean()),
        psnr_p5_db=float(np.percentile(psnr, 5)),
        latent_db=min(120.0, 10 * float(np.log10(float(reference.latents.double().square().sum()) / max(moved, 1e-30)))),
    )
