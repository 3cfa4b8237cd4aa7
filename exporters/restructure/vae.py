"""The VAE's decoder and encoder, as diffusers computes them, with the latent's scaling and shift folded in.

The networks are the halves of diffusers' own ``AutoencoderKL`` or ``AutoencoderTiny``; the one attention of the former is made an
opaque operation so that every exporter can choose its kernel. The latter's decoder clamps its latents (``3 tanh(x / 3)``) and
moves its picture from [0, 1] to [-1, 1] itself. The picture comes out in [0, 1], as ``VaeImageProcessor.postprocess`` makes it.

Scaling and shift stay two operations on the small latent. Folding them into the first convolution would be wrong at the
picture's border, where the convolution's padding is zero after the shift, not before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

from exporters.image_to_image import LOG_VARIANCE
from exporters.restructure.attention import attend
from exporters.restructure.bands import Bands, Moments, decoded, encoded, open_decoder, open_encoder
from exporters.restructure.base import Conv2d, Linear, RestructuredModule
from exporters.student.classes import component_class
from exporters.student.weights.templates import reference_module


class _AttentionProcessor:
    """Diffusers' attention processor protocol: spatial self-attention through one opaque operation."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> Tensor:
        batch, channels, height, width = hidden_states.shape
        tokens = hidden_states.flatten(2)  # [batch, channels, height * width]
        tokens = attn.group_norm(tokens).transpose(1, 2)
        query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        head_dim = query.shape[-1] // attn.heads
        mixed = attn.to_out[0](attend(attn, query, key, value, None, attn.heads, head_dim**-0.5, False))
        return mixed.transpose(1, 2).reshape(batch, channels, height, width) + hidden_states


class _GroupNorm(nn.GroupNorm):
    """Group norm in fp32 whatever the type around it, its means taken in two stages.

    A group of SD3's VAE has up to a million values at 512 px. Runtimes sum them one after another in fp32, and a sum that
    grows so long loses what is added to it: against fp64, onnxruntime's GroupNormalization reaches 95 dB there, its
    InstanceNormalization 100 dB, means of rows and then of their means 132 dB, in 0.6 of GroupNormalization's time
    (``python -m benchmarks.studies.kernels``).

    Attributes:
        whole: leave it one operation, for exporters whose targets have a wide one.
    """

    whole = False

    def forward(self, input: Tensor) -> Tensor:
        """``[batch, channels, ...]``, normalised over each group of channels and all that follows."""
        if self.whole:
            return super().forward(input)
        return self.normalised(input, self.moments([input]))

    def moments(self, bands: Bands) -> Moments:
        """Mean and standard deviation of each group, of a value in bands of as many numbers each."""
        mean = _mean([_staged_mean(self._rows(band)) for band in bands])
        variance = _mean([_staged_mean((self._rows(band) - mean).square()) for band in bands])
        return mean, torch.sqrt(variance + self.eps)

    def normalised(self, input: Tensor, moments: Moments) -> Tensor:
        """A value, or a part of it, by the moments of all of it."""
        mean, spread = moments
        normed = ((self._rows(input) - mean) / spread).reshape(input.shape)
        wide = (1, input.shape[1], *[1] * (input.ndim - 2))
        return (normed * self.weight.reshape(wide) + self.bias.reshape(wide)).to(input.dtype)

    def _rows(self, input: Tensor) -> Tensor:
        """``[batch, groups, rows, last size]``, fp32."""
        return input.to(torch.float32).reshape(input.shape[0], self.num_groups, -1, input.shape[-1])


def keep_group_norms(module: nn.Module) -> None:
    """Trace group norms as one operation each."""
    for part in module.modules():
        if isinstance(part, _GroupNorm):
            part.whole = True


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """Of parts that count alike."""
    return parts[0] if len(parts) == 1 else torch.stack([*parts]).mean(dim=0)


def _staged_mean(rows: Tensor) -> Tensor:
    """Mean over the last two axes, the last first: rows are equally long, so that the mean of means is the mean."""
    return rows.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


_STREAM_BEGINS = re.compile(r"\.(conv_in|conv_shortcut|conv|layers\.\d+)$")
"""Convolutions whose results are the residual stream: the first, those beside a block, and those that resample.

In an ``AutoencoderTiny`` they are the layers that are convolutions; those of its blocks are ``layers.N.conv.N``.
"""


def _own_form(name: str, layer: nn.Module) -> nn.Module:
    """A layer of diffusers' in the form that keeps the precision policy (:mod:`exporters.restructure.base`)."""
    if type(layer) is nn.GroupNorm:
        return _GroupNorm(layer.num_groups, layer.num_channels, layer.eps)
    if type(layer) is nn.Linear:
        return Linear(layer.in_features, layer.out_features, layer.bias is not None)
    if type(layer) is nn.Conv2d:
        where: Any = {"stride": layer.stride, "padding": layer.padding}
        conv = Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=layer.bias is not None, **where)  # type: ignore[arg-type]
        conv.begins_stream = _STREAM_BEGINS.search(name) is not None
        return conv
    return layer


class _VaeHalf(RestructuredModule):
    def __init__(self, config: Mapping[str, Any], half: str, quant: str, bands: int) -> None:
        super().__init__()
        self.bands = bands
        vae = reference_module("vae", dict(config))
        self.add_module(half, getattr(vae, half))
        if getattr(vae, quant, None) is not None:
            self.add_module(quant, getattr(vae, quant))
        for prefix, module in list(self.named_modules()):
            if isinstance(module, Attention):
                module.set_processor(_AttentionProcessor())  # type: ignore[arg-type]
            if isinstance(module, ResnetBlock2D | AutoencoderTinyBlock):
                module.recomputed = True  # type: ignore[assignment]
            for name, child in list(module.named_children()):
                setattr(module, name, _own_form(f"{prefix}.{name}", child))


class VaeDecoder(_VaeHalf):
    """Latents to picture.

    Args:
        config: the VAE's configuration.
        raw: take latents as the sampler leaves them and return RGB in [0, 1]; otherwise diffusers' ``decode``.
        bands: of rows in which an ``AutoencoderKL`` is computed (:mod:`exporters.restructure.bands`); 1 for all at once.
    """

    def __init__(self, config: Mapping[str, Any], raw: bool = True, bands: int = 1) -> None:
        super().__init__(config, "decoder", "post_quant_conv", bands)
        if self.bands > 1:
            open_decoder(self.decoder)
        self.raw, self.scaling, self.shift = raw, config["scaling_factor"], config["shift_factor"] or 0.0

    def forward(self, latent_sample: Tensor) -> Tensor:
        """``[batch, latent_channels, height, width]`` to ``[batch, 3, 8 height, 8 width]``."""
        latents = latent_sample / self.scaling + self.shift if self.raw else latent_sample
        if "post_quant_conv" in dict(self.named_children()):
            latents = self.post_quant_conv(latents)
        sample = decoded(self.decoder, latents, self.bands) if self.bands > 1 else self.decoder(latents)
        sample = sample.to(torch.float32)
        return (sample / 2 + 0.5).clamp(0, 1) if self.raw else sample


class VaeEncoder(_VaeHalf):
    """Picture to what the VAE says of its latents: mean and log-variance, or of an ``AutoencoderTiny`` the latents themselves.

    Args:
        config: the VAE's configuration.
        raw: take RGB in [0, 1] and return the law of latents as a sampler has them, scaled and shifted, as two results;
            otherwise diffusers' ``encode``: a picture in [-1, 1], one result.
        bands: as of :class:`VaeDecoder`.
    """

    def __init__(self, config: Mapping[str, Any], raw: bool = True, bands: int = 1) -> None:
        super().__init__(config, "encoder", "quant_conv", bands)
        if self.bands > 1:
            open_encoder(self.encoder)
        self.raw, self.scaling, self.shift = raw, config["scaling_factor"], config["shift_factor"] or 0.0
        self.has_variance = component_class("vae", config) == "AutoencoderKL"

    def forward(self, sample: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """``[batch, 3, 8 height, 8 width]`` to ``[batch, 2 or 1 times latent_channels, height, width]``, raw: in two halves."""
        picture = sample * 2 - 1 if self.raw else sample
        law = encoded(self.encoder, picture, self.bands) if self.bands > 1 else self.encoder(picture)
        if "quant_conv" in dict(self.named_children()):
            law = self.quant_conv(law)
        law = law.to(torch.float32)
        if not self.raw:
            return law  # type: ignore[no-any-return]
        if not self.has_variance:
            return (law - self.shift) * self.scaling  # type: ignore[no-any-return]
        channels = law.shape[1] // 2
        mean, log_variance = law[:, :channels], law[:, channels:]
        return (mean - self.shift) * self.scaling, log_variance.clamp(*LOG_VARIANCE) + 2 * math.log(self.scaling)
