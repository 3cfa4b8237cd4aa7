"""The transformer of a student, a teacher or a fake model as a velocity, ``(x, t, cond) -> v``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillation.networks.conditioning import Conditioning
from distillation.write import write_component

__all__ = ["LATENT_PIXELS", "VelocityTransformer", "latent_shape", "of_transformer", "save_transformer"]


#: Pixels of a side for one of a latent, by SD3's autoencoder.
LATENT_PIXELS = 8


def latent_shape(config: Any, resolution: int = 0) -> tuple[int, int, int]:
    """Of the latents that a transformer draws, ``(channels, height, width)``.

    Args:
        config: the transformer's.
        resolution: of the pictures, in pixels; the transformer's own where 0.
    """
    side = resolution // LATENT_PIXELS or config.sample_size
    return config.in_channels, side, side


def of_transformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a :class:`VelocityTransformer`'s transformer, by its own names."""
    return {name.removeprefix("transformer."): tensor for name, tensor in state.items()}


def save_transformer(transformer: Any, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a transformer as diffusers does, into ``folder / "transformer"``, in fp32.

    Args:
        transformer: the model.
        folder: of its student.
        state: its tensors; its own where absent.
    """
    state = transformer.state_dict() if state is None else state
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    chunks = {name: lambda tensor=tensor: [tensor.float().cpu().numpy().reshape(-1)] for name, tensor in state.items()}  # type: ignore[misc]
    config = json.loads(transformer.to_json_string())
    config.pop("_name_or_path", None)  # where it was read from, on this machine
    write_component(folder / "transformer", config, shapes, chunks, "fp32")


class VelocityTransformer(nn.Module):
    """A diffusers ``SD3Transformer2DModel`` with levels in [0, 1] in place of timesteps of a thousand.

    Args:
        transformer: the model.
        half: compute in bfloat16 where that is safe (torch's autocast); weights stay as they are.
    """

    def __init__(self, transformer: Any, *, half: bool = False) -> None:
        super().__init__()
        self.transformer, self.half_precision = transformer, half

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The velocity at ``x [batch, channels, height, width]`` and levels ``t [batch]``."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half_precision):
            velocity: Tensor = self.transformer(
                hidden_states=x,
                encoder_hidden_states=cond.tokens,
                pooled_projections=cond.pooled,
                timestep=1000 * t,
                return_dict=False,
            )[0]
        return velocity.to(x.dtype)

    def features(self, x: Tensor, t: Tensor, cond: Conditioning, blocks: tuple[int, ...]) -> list[Tensor]:
        """The image tokens ``[batch, tokens, width]`` after some blocks; the pass ends with the last of them.

        A pass of its own and no hooks, which would fire again when a block is recomputed. Blocks are checkpointed where the
        transformer's are (``enable_gradient_checkpointing``).
        """
        model = self.transformer
        recomputed = torch.is_grad_enabled() and model.gradient_checkpointing
        features = []
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half_precision):
            hidden = model.pos_embed(x)
            embedded = model.time_text_embed(1000 * t, cond.pooled)
            text = model.context_embedder(cond.tokens)
            for index, block in enumerate(model.transformer_blocks[: max(blocks) + 1]):
                if recomputed:  # as the model's own pass does
                    text, hidden = model._gradient_checkpointing_func(block, hidden, text, embedded)  # noqa: SLF001
                else:
                    text, hidden = block(hidden_states=hidden, encoder_hidden_states=text, temb=embedded)
                if index in blocks:
                    features.append(hidden.to(x.dtype))
        return features
