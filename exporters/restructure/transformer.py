"""The whole transformer in diffusers' own interface, for the ``optimum`` layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from exporters.restructure.base import RestructuredModule, named, prefixed
from exporters.restructure.conditioning import SINUSOID_CHANNELS, EmbeddingMlp, Modulations, inner_dim, sinusoid
from exporters.restructure.denoiser import Denoiser
from exporters.student.weights.weight import Weight


class Transformer(RestructuredModule):
    """Conditioner and denoiser in one graph, timestep as an input; of any batch, text length and size.

    Args:
        config: the transformer's configuration.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.text_embedder = EmbeddingMlp(config["pooled_projection_dim"], inner_dim(config))
        self.timestep_embedder = EmbeddingMlp(SINUSOID_CHANNELS, inner_dim(config))
        self.modulations = Modulations(config)
        self.denoiser = Denoiser(config, None)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor
    ) -> Tensor:
        """Predict the velocity.

        Args:
            hidden_states: noisy latents ``[batch, in_channels, height, width]``.
            encoder_hidden_states: ``[batch, tokens, joint_attention_dim]``.
            pooled_projections: ``[batch, pooled]``.
            timestep: 0 to 1000, ``[batch]``.

        Returns:
            ``[batch, out_channels, height, width]``.
        """
        # The sinusoid is computed in fp32 whatever the graph's precision: its angles reach 1000 radians.
        temb = self.timestep_embedder(sinusoid(timestep)) + self.text_embedder(pooled_projections)
        return self.denoiser(hidden_states, encoder_hidden_states, self.modulations(temb))

    def weights(self, component: Mapping[str, Weight]) -> dict[str, Weight]:
        """Diffusers' tensors by their names there."""
        weights = prefixed("denoiser", self.denoiser.weights(component)) | prefixed(
            "modulations", self.modulations.weights(component)
        )
        for name in ("text_embedder", "timestep_embedder"):
            weights |= prefixed(name, named(self.get_submodule(name), component, f"time_text_embed.{name}"))
        return weights
