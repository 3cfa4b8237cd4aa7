"""Two results compared, in dB; what is not finite is never compared."""

from __future__ import annotations

import numpy as np

from exporters.errors import Complaint, ExportError

EQUAL_DB = 999.0  # written for an infinite ratio: JSON has none
FP32 = "build with --precision fp32, or store what overflows in fp32 (a rule of a profile, e.g. vae/* -> fp32)"


OVERFLOWED = f"a value outgrew the type that the graph computes in, fp16 most likely: {FP32}"


DAMAGED = "the student itself computes NaN or infinity: its weights are damaged, or it is no model of this kind"


def snr_db(reference: np.ndarray, got: np.ndarray, where: str = "output") -> float:
    """Signal-to-noise ratio ``10 log10(sum(reference^2) / sum((reference - got)^2))`` in dB, in fp64.

    Infinite where both are equal. A silent reference with a noisy result is minus infinity.

    Raises:
        ExportError: the shapes differ, or either holds NaN or infinity: no ratio can speak for such a result.

    >>> snr_db(np.ones(4), np.full(4, 1.01))
    40.0
    """
    complaints = []
    if reference.shape != got.shape:
        complaints.append(Complaint(where, "wrong shape", str(list(reference.shape)), str(list(got.shape))))
    remedy = ""
    for name, array, cure in (("reference", reference, DAMAGED), ("result", got, OVERFLOWED)):
        if bad := int(array.size - np.isfinite(array).sum()):
            complaints.append(Complaint(where, f"{bad} of {array.size} values of the {name} are NaN or infinite"))
            remedy = remedy or cure
    if complaints:
        raise ExportError("Two results cannot be compared.", complaints, remedy)
    wide, error = reference.astype(np.float64), reference.astype(np.float64) - got.astype(np.float64)
    signal, noise = float(np.sum(wide**2)), float(np.sum(error**2))
    if noise == 0:
        return float("inf")
    return float("-inf") if signal == 0 else round(10 * float(np.log10(signal / noise)), 2)


def psnr_db(reference: np.ndarray, got: np.ndarray, where: str = "picture") -> float:
    """Peak signal-to-noise ratio of pictures in [0, 1], in dB.

    Raises:
        ExportError: as :func:`snr_db`.
    """
    snr_db(reference, got, where)  # shapes and finiteness
    mean_square = float(np.mean((reference.astype(np.float64) - got.astype(np.float64)) ** 2))
    return float("inf") if mean_square == 0 else round(-10 * float(np.log10(mean_square)), 2)
