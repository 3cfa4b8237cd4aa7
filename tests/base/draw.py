"""Run by check.sh with an installed base package: draws the kept bundle's picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from flash_deploy import Pipeline

KEPT = Path(__file__).parents[1] / "deploy"
REQUIRED_DB = 100.0  # fp32 graphs in another build of onnxruntime: rounding alone

assert find_spec("torch") is None, "torch came with the base install"
assert "site-packages" in str(find_spec("deploy").origin), "the checkout was imported"  # type: ignore[union-attr]

with Pipeline(KEPT / "bundle_v1") as pipeline:
    picture = pipeline.generate("a cat", seed=3)
kept = np.load(KEPT / "bundle_v1.npy").astype(np.float64)
mean_square = float(np.mean((kept.reshape(picture.shape) - picture) ** 2))
assert np.isfinite(picture).all()
assert mean_square <= 10 ** (-REQUIRED_DB / 10), f"another picture: {-10 * np.log10(mean_square):.1f} dB"
