"""Resizing in numpy against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporters.choices import UpscaleMode, options
from exporters.scales import resized


@pytest.mark.parametrize("mode", options(UpscaleMode))
@pytest.mark.parametrize("sizes", [((4, 6), (6, 12)), ((5, 3), (7, 8)), ((8, 8), (8, 9)), ((3, 2), (16, 16)), ((1, 1), (4, 2))])
def test_latents_are_enlarged_as_torch_does_it(mode: UpscaleMode, sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Weights are of at most 16 places in fp32, sums of them within 16 roundings of numbers near 4."""
    old, new = sizes
    latents = np.random.default_rng(0).standard_normal((2, 3, *old), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(latents), size=new, mode=mode).numpy()
    got = resized(latents, new, mode)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=16 * 4 * 2**-24)
    if mode not in ("nearest", "nearest-exact") and min(old) > 1:
        assert np.abs(got - resized(latents, new, "nearest")).max() > 0.1  # the comparison can fail
