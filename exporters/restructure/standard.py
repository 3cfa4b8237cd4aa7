"""A text encoder with transformers' own outputs, for the ``optimum`` layout."""

from __future__ import annotations

from torch import Tensor

from exporters.restructure.clip import ClipTextModel


class StandardClip(ClipTextModel):
    """A CLIP text encoder that returns what transformers' ``output_hidden_states=True`` returns."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """``[batch, tokens]`` to the pooled projection, the final states and each of the layers' states."""
        pooled, final, states = self.forward_all(input_ids)
        return (pooled, final, *states)
