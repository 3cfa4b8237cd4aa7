"""The tiers as the benchmark's advice sees them, and what is predicted for those that are not here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.results.advice import Forecast, TierLimits
from deploy.bundle.folder import open_bundle
from deploy.errors import TierError
from deploy.forecast.predict import costs, predictions
from deploy.tiers.read import tier_data
from deploy.tiers.tier import all_tiers, profile_schemes

DEVICES = {
    "browser": ("browser-",),
    "desktop-cpu": ("onnxruntime-cpu", "openvino"),
    "desktop-gpu-8gb": ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-directml"),
    "desktop-gpu-24gb": ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-directml"),
}
"""Targets that are such a device where they are measured on the developer's own machine; all others stand in for it."""
REMOTE = ("coreml", "onnxruntime-coreml")
READERS = {"onnx": "onnx_ir", "coreml": "coremltools"}  # packages that a format's graphs are read with


def advice_tiers() -> list[TierLimits]:
    """Every tier; one that extends another is run on the same devices."""
    data = tier_data()
    return [
        TierLimits(
            name=name,
            description=tier.description,
            memory_bytes=tier.memory_bytes,
            download_bytes=tier.download_bytes,
            schemes={form: profile_schemes(tier, form) for form in tier.formats},
            targets=next((DEVICES[each] for each in data.line(name) if each in DEVICES), REMOTE),
        )
        for name, tier in data.tiers.items()
    ]


def forecasts(folders: Sequence[Path]) -> list[Forecast]:
    """A picture of each bundle on each tier's usual target; of none whose graphs no installed package reads."""
    predicted = []
    for bundle in map(open_bundle, folders):
        if find_spec(READERS[bundle.manifest.model_format]) is None:
            continue
        counted = costs(bundle)
        for name in all_tiers():
            with contextlib.suppress(TierError):  # the tier does not run such bundles
                usual = predictions(bundle, [name], counted)[0]
                predicted.append(Forecast(bundle.folder.name, name, usual.target, usual.seconds, *usual.range_seconds))
    return predicted
