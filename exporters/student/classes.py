"""Which class of diffusers or transformers each part of a student is: the one place that knows which parts may be of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLASSES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModelWithProjection",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "text_encoder_3": ("T5EncoderModel",),
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "scheduler": ("FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"),
}
"""The classes that a part may be of. Where there are several, its configuration says which: the first if it says nothing."""
CLASS_KEY = "_class_name"


def component_class(component: str, config: Mapping[str, Any]) -> str:
    """The class of a component; of one that may be of several, what its configuration says, whether that is one of them or not.

    >>> component_class("vae", {}), component_class("vae", {"_class_name": "AutoencoderTiny"})
    ('AutoencoderKL', 'AutoencoderTiny')
    """
    first, *others = CLASSES[component]
    return str(config.get(CLASS_KEY, first)) if others else first
