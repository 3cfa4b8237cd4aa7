from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies.saturation import EXACT_DB, FORMS, decibels, in_onnxruntime


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "signed codes"])
def test_what_bundles_store_adds_up(form: str, sign: int) -> None:
    assert decibels(form, 3, sign, in_onnxruntime) >= EXACT_DB


def test_sums_in_16_bits_show() -> None:
    """As vpmaddubsw adds: 255 x 127 twice is 64,770, and comes to 32,767: half of what is right, 6 dB."""

    def saturating(_: bytes) -> object:
        return lambda x: np.full((len(x), 40), x.shape[1] / 2 * 32767 * 3 / 255, np.float32)

    assert decibels("signed codes", 3, 1, saturating) == pytest.approx(6.1, abs=0.05)
