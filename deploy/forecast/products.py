"""How long products with weights take on a tier, scheme by scheme, before there is a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.forecast.cost import Arithmetic, Work
from benchmarks.forecast.roofline import Place
from deploy.errors import Complaint, TierError
from deploy.forecast.targets import places
from deploy.tiers.tier import find_tier
from quantization.calibration import Layer
from quantization.schemes import Scheme


@dataclass(frozen=True)
class ProductTimes:
    """Times of products with weights on a tier, predicted scheme by scheme before there is a graph.

    Args:
        tier: name of the tier.
        model_format: of the bundle.
        compute_units: of a Core ML bundle.
    """

    tier: str
    model_format: str
    compute_units: str | None = None

    def seconds(self, layer: Layer, scheme: Scheme, rows: float, shape: tuple[int, ...]) -> float:
        """A weight's products in one picture.

        Args:
            layer: what reads the weight.
            scheme: how it is stored.
            rows: how many rows it is multiplied with in one picture, over all steps.
            shape: of the weight, ``[out, in, ...]``.
        """
        if layer == "embedding":
            return 0.0
        elements = math.prod(shape)
        arithmetic = self._arithmetic(layer, scheme)
        place, peak = self._place(arithmetic)
        # Read once at least: in each step again, but then many rows share the reading, and arithmetic is what bounds it.
        work = Work(
            "convolution" if layer == "convolution" else "product",
            multiply_adds=round(rows * elements),
            weight_bytes=scheme.size_bytes(shape),
            activation_bytes=round(4 * rows * (shape[0] + elements // shape[0])),
        )
        return place.seconds(work, arithmetic, peak)[0]

    def _arithmetic(self, layer: Layer, scheme: Scheme) -> Arithmetic:
        if self.model_format == "coreml":
            return "fp16"
        if layer == "linear" and scheme.dynamic_activations:
            return "w8a8"
        if layer == "linear" and scheme.block is not None:
            return "blocks8" if scheme.bits == 8 else "blocks4"
        return find_tier(self.tier).compute

    def _place(self, arithmetic: Arithmetic) -> tuple[Place, float]:
        units = self.compute_units or getattr(find_tier(self.tier).coreml, "compute_units", None)
        for target in find_tier(self.tier).targets.values():
            if target.format == self.model_format and target.compute_units in (None, units):
                for place in places(target).values():
                    peak = place.peak(arithmetic, find_tier(self.tier).compute)
                    if peak is not None:
                        return place, peak
        raise TierError("The tier has no forecast.", [Complaint("--tier", f"nothing multiplies {arithmetic}", got=self.tier)])
