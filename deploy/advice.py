"""The tiers as the benchmark's advice sees them."""

from __future__ import annotations

from benchmarks.advice import Tier
from deploy.tiers import all_tiers, legal_schemes

DEVICES = {
    "browser": ("browser-",),
    "desktop-cpu": ("onnxruntime-cpu", "openvino"),
    "desktop-gpu-8gb": ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-directml"),
    "desktop-gpu-24gb": ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-directml"),
}
"""Targets that are such a device where they are measured on the developer's own machine; all others stand in for it."""
REMOTE = ("coreml", "onnxruntime-coreml")


def advice_tiers() -> list[Tier]:
    """Every tier."""
    return [
        Tier(
            name=name,
            description=tier.description,
            memory_bytes=tier.memory_bytes,
            download_bytes=tier.download_bytes,
            schemes={form: legal_schemes(tier, form) for form in tier.formats},
            targets=DEVICES.get(name, REMOTE),
        )
        for name, tier in all_tiers().items()
    ]
