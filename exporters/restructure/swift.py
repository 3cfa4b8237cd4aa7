"""The student's networks behind the interface of Apple's Swift ``StableDiffusion3Pipeline`` (apple/ml-stable-diffusion).

That client computes a prompt and a negative prompt together and mixes them by guidance. Of a student that has its guidance
distilled in, only the prompt's half is computed, and returned twice: whatever guidance the client mixes with, the prompt's result
comes out of it (``n + g (p - n)`` with ``n = p``), at the cost of a batch of one. Of one that is guided, both are computed.

Token ids come as numbers; text states as ``[batch, channels, 1, tokens]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.restructure.base import RestructuredModule, constant, named, prefixed
from exporters.restructure.clip import ClipTextModel
from exporters.restructure.conditioning import EmbeddingMlp, Modulations, embed_timesteps, inner_dim
from exporters.restructure.denoiser import Denoiser
from exporters.restructure.t5 import T5Encoder
from exporters.student.weights.weight import Weight


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


class SwiftTransformer(RestructuredModule):
    """Conditioner and denoiser for a fixed size and schedule; the client tells which step it is at by its own noise level.

    Of a level that is none of the client's for this schedule, as another step count or shift has them, the velocity is 0: such a
    picture is noise, and not one that is nearly right.

    Args:
        config: the transformer's configuration.
        grid: patch rows and columns.
        clip_tokens: text tokens of the CLIP encoders; T5's follow them.
        null_tokens: how many zero tokens the client feeds in T5's place; 0 where it has T5.
        steps: of each of the client's: the timestep that it tells, the student's own, 0 to 1000 both, and the velocity's scale.
        tolerance: how far from a step's timestep a number is still taken for it.
        guided: compute the second of each pair too.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        grid: tuple[int, int],
        clip_tokens: int,
        null_tokens: int,
        steps: Sequence[tuple[float, float, float]],
        tolerance: float,
        guided: bool = False,
    ) -> None:
        super().__init__()
        self.computed = 2 if guided else 1
        self.tokens = clip_tokens + 1 if null_tokens else None
        self.told, self.timesteps, self.scaling = zip(*steps, strict=True)
        self.tolerance = tolerance
        self.text_embedder = EmbeddingMlp(config["pooled_projection_dim"], inner_dim(config))
        self.modulations = Modulations(config)
        self.denoiser = Denoiser(config, grid, null_tokens)
        self.levels = nn.Buffer(torch.empty(1, len(steps)))
        self.scales = nn.Buffer(torch.empty(1, len(steps)))
        self.time_embeddings = nn.Buffer(torch.empty(inner_dim(config), len(steps)))

    def forward(
        self,
        latent_image_embeddings: Tensor,
        timestep: Tensor,
        token_level_text_embeddings: Tensor,
        pooled_text_embeddings: Tensor,
    ) -> Tensor:
        """Predict the velocity of each pair, scaled to the client's step; where it is not guided, of the first, twice.

        Args:
            latent_image_embeddings: noisy latents ``[2, in_channels, height, width]``.
            timestep: the client's, 0 to 1000, ``[2]``.
            token_level_text_embeddings: ``[2, joint_attention_dim, 1, clip tokens + T5's or zero tokens]``.
            pooled_text_embeddings: ``[2, pooled, 1, 1]``.

        Returns:
            ``[2, out_channels, height, width]``.
        """
        count = self.computed
        text = token_level_text_embeddings[:count].squeeze(2).transpose(1, 2)[:, : self.tokens]
        pooled = pooled_text_embeddings[:count].flatten(1)
        step = self._step(timestep[:count, None])
        temb = F.linear(step, self.time_embeddings) + self.text_embedder(pooled)
        modulations = self.modulations(temb)
        velocity = self.denoiser(latent_image_embeddings[:count], text, modulations[0] if count == 1 else modulations)
        scaled = velocity * F.linear(step, self.scales)[:, :, None, None]
        return torch.cat([scaled, scaled]) if count == 1 else scaled

    def _step(self, timestep: Tensor) -> Tensor:
        """``[batch, 1]`` to ``[batch, steps]``: 1 at the step that it is of, else 0."""
        apart = torch.maximum(timestep - self.levels, self.levels - timestep)
        return (self.tolerance - apart > 0).to(torch.float32)

    def weights(self, component: Mapping[str, Weight]) -> dict[str, Weight]:
        """Diffusers' tensors by their names there, and the schedule."""
        time = Weight(
            tuple(self.time_embeddings.shape),
            np.dtype(np.float32),
            lambda: np.ascontiguousarray(embed_timesteps(component, self.timesteps).T),
            "transformer: time embeddings of the steps",
        )
        return (
            prefixed("modulations", self.modulations.weights(component))
            | prefixed("text_embedder", named(self.text_embedder, component, "time_text_embed.text_embedder"))
            | prefixed("denoiser", self.denoiser.weights(component))
            | {
                "time_embeddings": time,
                "levels": constant(np.array([self.told], np.float32), "the Swift client's timesteps"),
                "scales": constant(np.array([self.scaling], np.float32), "the student's steps over the Swift client's"),
            }
        )
