"""A bundle of the manifest's version 1, kept (bundle_v1.md)."""

from pathlib import Path

V1 = Path(__file__).parents[1] / "deploy" / "bundle_v1"
PICTURE = Path(__file__).parents[1] / "deploy" / "bundle_v1.npy"
