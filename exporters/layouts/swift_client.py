"""Layout ``swift``: the contract of Apple's Swift ``StableDiffusion3Pipeline``, as apple/ml-stable-diffusion e12202c has it.

Names, shapes and the order of things are that client's (``swift/StableDiffusion/pipeline``: ``StableDiffusion3Pipeline.swift``,
``TextEncoderXL.swift``, ``TextEncoderT5.swift``, ``MultiModalDiffusionTransformer.swift``, ``Decoder.swift``). All is fp32.

==================================  ====================================================================================
``TextEncoder``, ``TextEncoder2``   ``input_ids`` to ``hidden_embeds`` (the state before the last layer), ``pooled_outputs``
``TextEncoderT5``                   ``input_ids``, ``attention_mask`` to ``encoder_hidden_states`` [1, channels, 1, tokens]
``MultiModalDiffusionTransformer``  ``latent_image_embeddings``, ``timestep``, ``token_level_text_embeddings``,
                                    ``pooled_text_embeddings``, all for two, to ``denoiser_output``
``VAEDecoder``                      ``z``, scaled and shifted latents, to ``image`` in [-1, 1]
==================================  ====================================================================================

There is no VAE encoder: the client reads four latent channels of it where SD3 has sixteen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from exporters.student.student import Student

T5_TOKENS = 77  # the client cuts T5's states to these, and feeds as many zero tokens where there is no T5
CLIENT = {
    "clip_tokens": 77,
    "text_encoder: hidden_size": 768,
    "text_encoder_2: hidden_size": 1280,
    "transformer: joint_attention_dim": 4096,
    "transformer: pooled_projection_dim": 2048,
}
"""Sizes that the client's own code holds; a student of others needs them changed there."""

Arrays = dict[str, np.ndarray]


def client_sizes(student: Student, clip_tokens: int) -> dict[str, int]:
    """What the student has in place of :data:`CLIENT`'s sizes."""
    sizes = {"clip_tokens": clip_tokens}
    for key in CLIENT.keys() - sizes.keys():
        component, name = key.split(": ")
        sizes[key] = int(student.configs[component][name])
    return sizes


def text_states(clips: Sequence[np.ndarray], t5: np.ndarray | None, joint_dim: int) -> np.ndarray:
    """Text states as the client puts them together.

    Args:
        clips: CLIP-L's and CLIP-G's states ``[1, clip tokens, channels]``.
        t5: T5's ``[1, joint_dim, 1, tokens]``; none where there is no T5.
        joint_dim: channels of the transformer's text states.

    Returns:
        ``[1, joint_dim, 1, clip tokens + 77]``: the CLIP states side by side, then T5's or zeros.
    """
    side_by_side = np.concatenate(clips, axis=-1)
    padded = np.pad(side_by_side, ((0, 0), (0, 0), (0, joint_dim - side_by_side.shape[-1])))
    after = np.zeros((1, joint_dim, 1, T5_TOKENS), np.float32) if t5 is None else t5[..., :T5_TOKENS]
    return np.concatenate([padded.transpose(0, 2, 1)[:, :, None], after], axis=-1)


def transformer_inputs(latents: np.ndarray, timestep: float, text: np.ndarray, pooled: np.ndarray) -> Arrays:
    """What the client feeds the transformer, with the prompt in the negative prompt's place too.

    Args:
        latents: ``[1, channels, height, width]``.
        timestep: 0 to 1000.
        text: ``[1, joint_dim, 1, tokens]``.
        pooled: ``[1, pooled]``.
    """
    return {
        "latent_image_embeddings": np.concatenate([latents, latents]),
        "timestep": np.full(2, timestep, np.float32),
        "token_level_text_embeddings": np.concatenate([text, text]),
        "pooled_text_embeddings": np.concatenate([pooled, pooled])[:, :, None, None],
    }
