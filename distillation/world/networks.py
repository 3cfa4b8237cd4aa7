"""The networks that learn this world, from nothing: of SD3.5's classes, a few million parameters in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distillation.world.scenes import sample
from distillation.world.text import Attributes, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer

__all__ = ["LATENT_CHANNELS", "attributes", "autoencoder", "transformer"]

WIDTH, CLIP_WIDTHS, LATENT_CHANNELS = 160, (64, 96), 16
WORDS_FROM = 6000
"""Captions that tokenizers learn their words from: all words of the world are said in far fewer."""


def attributes() -> Attributes:
    """Text encoders, their tokenizers, and the heads that they learn with."""
    captions = [str(scene) for scene in sample(WORDS_FROM, seed=0)]
    tokenizers = [clip_tokenizer(captions, "<|endoftext|>"), clip_tokenizer(captions, "!")]
    clips = [
        clip_encoder(tokenizer, width, activation)
        for tokenizer, width, activation in zip(tokenizers, CLIP_WIDTHS, ("quick_gelu", "gelu"), strict=True)
    ]
    t5 = t5_tokenizer(captions)
    return Attributes(clips, tokenizers, t5_encoder(t5, WIDTH), t5)


def autoencoder() -> Any:
    """An ``AutoencoderKL`` for 64 pixels, eight times smaller in latents as SD3's, whose latents begin with little noise."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )
    last = vae.encoder.conv_out
    with torch.no_grad():
        last.weight[LATENT_CHANNELS:] *= 0.1
        last.bias[LATENT_CHANNELS:] = -6.0  # log variance
    return vae


def transformer(layers: int) -> Any:
    """An MMDiT-X of 128 channels that says 0 at first: its modulations and its last layer are zero, the rest is Xavier's.

    A token is one of the 8x8 latents, where Stable Diffusion 3.5 has a patch of 2x2: with the noise of four latents in it, 64
    numbers that a velocity has to repeat, a token of 128 channels has little room for anything else.
    """
    from diffusers import SD3Transformer2DModel

    model: Any = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=16,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    modulations: Sequence[nn.Module] = [
        part.linear for name, part in model.named_modules() if name.split(".")[-1] in ("norm1", "norm1_context", "norm_out")
    ]
    with torch.no_grad():
        for layer in (*modulations, model.proj_out):
            for parameter in layer.parameters():
                parameter.zero_()
    return model
