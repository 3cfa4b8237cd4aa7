"""The student's networks behind the interface of Apple's Swift ``StableDiffusion3Pipeline`` (apple/ml-stable-diffusion).

That client computes a prompt and a negative prompt together and mixes them by guidance. A student has its guidance distilled in,
so only the prompt's half is computed, and returned twice: whatever guidance the client mixes with, the prompt's result
comes out of it (``n + g (p - n)`` with ``n = p``), at the cost of a batch of one.

Token ids come as numbers; text states as ``[batch, channels, 1, tokens]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from exporters.restructure.clip import ClipTextModel
from exporters.restructure.conditioning import sinusoid
from exporters.restructure.t5 import T5Encoder
from exporters.restructure.transformer import Transformer


class SwiftClip(ClipTextModel):
    """A CLIP text encoder that takes token ids as numbers."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 ``[1, tokens]`` to the state before the last layer and the pooled projection."""
        return super().forward(input_ids.to(torch.int64))


class SwiftT5(T5Encoder):
    """A T5 encoder that takes token ids as numbers, and a mask that it has no use for: diffusers' SD3 gives T5 none."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        """fp32 ``[1, tokens]`` twice to ``[1, channels, 1, tokens]``."""
        return super().forward(input_ids.to(torch.int64)).transpose(1, 2).unsqueeze(2)


class SwiftTransformer(Transformer):
    """The whole transformer for a fixed size, timestep as an input.

    Args:
        config: the transformer's configuration.
        grid: patch rows and columns.
        clip_tokens: text tokens of the CLIP encoders; T5's follow them.
        null_tokens: how many zero tokens the client feeds in T5's place; 0 where it has T5.
    """

    def __init__(self, config: Mapping[str, Any], grid: tuple[int, int], clip_tokens: int, null_tokens: int) -> None:
        super().__init__(config, grid, null_tokens)
        self.tokens = clip_tokens + 1 if null_tokens else None

    def forward(  # type: ignore[override]
        self,
        latent_image_embeddings: Tensor,
        timestep: Tensor,
        token_level_text_embeddings: Tensor,
        pooled_text_embeddings: Tensor,
    ) -> Tensor:
        """Predict the velocity of the first of each pair, twice.

        Args:
            latent_image_embeddings: noisy latents ``[2, in_channels, height, width]``.
            timestep: 0 to 1000, ``[2]``.
            token_level_text_embeddings: ``[2, joint_attention_dim, 1, clip tokens + T5's or zero tokens]``.
            pooled_text_embeddings: ``[2, pooled, 1, 1]``.

        Returns:
            ``[2, out_channels, height, width]``.
        """
        text = token_level_text_embeddings[:1].squeeze(2).transpose(1, 2)[:, : self.tokens]
        pooled = pooled_text_embeddings[:1].flatten(1)
        temb = self.timestep_embedder(sinusoid(timestep[:1])) + self.text_embedder(pooled)
        velocity = self.denoiser(latent_image_embeddings[:1], text, self.modulations(temb)[0])
        return torch.cat([velocity, velocity])
