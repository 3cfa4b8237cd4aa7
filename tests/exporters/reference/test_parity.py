from __future__ import annotations

import numpy as np
import pytest

from exporters.errors import ExportError
from exporters.reference.decibels import psnr_db, snr_db


def test_golden_values() -> None:
    ones = np.ones((2, 2))
    assert snr_db(ones, ones * 1.1) == 20.0
    assert snr_db(ones, ones) == float("inf")
    assert snr_db(ones * 0, ones) == float("-inf")
    assert psnr_db(ones * 0.5, ones * 0.6) == 20.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["reference", "result"])
def test_non_finite_values_fail_before_any_ratio(bad: float, side: str) -> None:
    arrays = {"reference": np.ones(5), "result": np.ones(5)}
    arrays[side][3] = bad
    cause = "fp16 most likely: build with --precision fp32" if side == "result" else "its weights are damaged"
    with pytest.raises(ExportError, match=f"denoiser: 1 of 5 values of the {side} are NaN or infinite[\\s\\S]*{cause}"):
        snr_db(arrays["reference"], arrays["result"], "denoiser")


def test_shapes_must_agree() -> None:
    with pytest.raises(ExportError, match=r"wrong shape \(expected \[2, 3\], got \[3, 2\]\)"):
        psnr_db(np.zeros((2, 3)), np.zeros((3, 2)))
