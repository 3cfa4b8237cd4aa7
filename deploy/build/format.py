"""The model formats that a bundle's graphs can have, by name: how they are made, and what they cannot store.

``build`` knows the order of things; what differs between ONNX and Core ML is in :mod:`deploy.build.onnx_format` and
:mod:`deploy.build.coreml_format`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.build.coreml_format import CoreMLFormat
from deploy.build.draft import ModelFormat
from deploy.build.onnx_format import OnnxFormat
from deploy.tiers.schema import Tier
from exporters.choices import FormatName, System
from quantization.calibration import Layer
from quantization.schemes import Scheme

if TYPE_CHECKING:
    from deploy.build.plan import Plan


def model_format(plan: Plan) -> ModelFormat:
    """The format that was asked for."""
    return OnnxFormat(plan) if plan.request.format == "onnx" else CoreMLFormat(plan)


def unsupported(
    name: FormatName, layer: Layer, shape: tuple[int, ...], scheme: Scheme, tier: Tier, system: System | None = None
) -> str:
    """Why a format has no form for a layer's weight in a scheme; empty where it has one."""
    if name == "onnx":
        from exporters.onnx.quantize import unsupported as onnx_unsupported

        return onnx_unsupported(layer, scheme)
    from exporters.coreml.constants import unsupported as coreml_unsupported

    assert tier.coreml is not None
    return coreml_unsupported(shape, scheme, system or tier.coreml.system)
