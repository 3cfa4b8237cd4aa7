"""Components with transformers' and diffusers' own outputs, for the ``optimum`` layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from exporters.restructure.clip import ClipTextModel
from exporters.restructure.t5 import T5Encoder

__all__ = ["StandardClip", "T5Encoder"]


class StandardClip(ClipTextModel):
    """A CLIP text encoder that returns what transformers' ``output_hidden_states=True`` returns."""

    def __init__(self, config: Mapping[str, Any], component: str) -> None:
        super().__init__(config, component)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """``[batch, tokens]`` to the pooled projection, the final states and each of the layers' states."""
        pooled, final, states = self.forward_all(input_ids)
        return (pooled, final, *states)
