"""The levels of a VAE computed in bands of rows, exactly: never is a whole level there twice.

What takes a VAE's memory are the levels near the picture's size: 128 channels of a picture of 1024 px are half a gigabyte, and a
residual block, its norms written out, holds nine of them at once. Here a value is a list of bands, from top to bottom:

* a norm's mean and variance are those of the whole picture, summed band by band;
* a convolution's band takes a row of its neighbours, to which what goes before it (norm, activation, enlargement) is done again;
* the middle, whose attention sees the whole picture, is computed at once: it is at the latents' size.

So no picture differs from that of the whole by more than the order of a sum. Nothing here is a tile that is blended over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Bands = Sequence[Tensor]
"""One value ``[batch, channels, rows, columns]``, cut into bands of as many rows each."""
Form = Callable[[Tensor], Tensor]
Moments = tuple[Tensor, Tensor]


LEVELS = 2
"""How many are computed in bands: those nearest to the picture, in which nine of ten bytes are. More would be more operators."""


def open_decoder(decoder: Any) -> None:
    """Prepare diffusers' ``Decoder`` for :func:`decoded`."""
    _open_rows(*decoder.up_blocks[-LEVELS:], decoder.conv_out)


def open_encoder(encoder: Any) -> None:
    """Prepare diffusers' ``Encoder`` for :func:`encoded`."""
    _open_rows(encoder.conv_in, *encoder.down_blocks[:LEVELS])


def _open_rows(*parts: nn.Module) -> None:
    """Let the convolutions of 3 x 3 of some parts pad columns alone: their bands bring rows of their own."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d) and layer.padding == (1, 1):
                layer.padding = (0, 1)


def decoded(decoder: Any, latents: Tensor, count: int) -> Tensor:
    """What diffusers' ``Decoder``, which :func:`open_decoder` has prepared, makes of latents.

    Args:
        decoder: its module.
        latents: ``[batch, channels, height / 8, width / 8]``; a quarter of the height is a multiple of ``count``.
        count: how many bands there are.
    """
    whole = decoder.mid_block(decoder.conv_in(latents), None)
    for level in decoder.up_blocks[:-LEVELS]:
        whole = level(whole, None)
    bands = _cut(whole, count)
    for level in decoder.up_blocks[-LEVELS:]:
        for block in level.resnets:
            bands = _residual(block, bands)
        for upsampler in level.upsamplers or ():
            bands = [*_convolved(bands, upsampler.conv, _doubled, scale=2)]
    norm = decoder.conv_norm_out
    moments = norm.moments(bands)
    made = _convolved(bands, decoder.conv_out, lambda x: decoder.conv_act(norm.normalised(x, moments)))
    return torch.cat([*made], dim=2)


def encoded(encoder: Any, picture: Tensor, count: int) -> Tensor:
    """What diffusers' ``Encoder``, which :func:`open_encoder` has prepared, makes of a picture.

    Args:
        encoder: its module.
        picture: ``[batch, 3, height, width]``; a quarter of the height is a multiple of ``count``.
        count: how many bands there are.
    """
    bands: Bands = [*_convolved(_cut(picture, count), encoder.conv_in)]
    for level in encoder.down_blocks[:LEVELS]:
        for block in level.resnets:
            bands = _residual(block, bands)
        for downsampler in level.downsamplers or ():
            bands = [*_halved(bands, downsampler.conv)]
    whole = torch.cat([*bands], dim=2)
    for level in encoder.down_blocks[LEVELS:]:
        whole = level(whole)
    made: Tensor = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(whole, None))))
    return made


def _cut(x: Tensor, count: int) -> Bands:
    return x.chunk(count, dim=2)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _residual(block: Any, bands: Bands) -> Bands:
    """A ``ResnetBlock2D`` without a time embedding."""
    hidden = [*_convolved(bands, block.conv1, _activated(block, block.norm1, bands))]
    changes = _convolved(hidden, block.conv2, _activated(block, block.norm2, hidden))
    beside = block.conv_shortcut or (lambda x: x)
    return [(beside(band) + change) / block.output_scale_factor for band, change in zip(bands, changes, strict=True)]


def _activated(block: Any, norm: Any, bands: Bands) -> Form:
    moments = norm.moments(bands)
    return lambda x: block.nonlinearity(norm.normalised(x, moments))  # type: ignore[no-any-return]


def _convolved(bands: Bands, layer: nn.Module, form: Form = lambda x: x, scale: int = 1) -> Iterator[Tensor]:
    """Bands of a convolution of 3 x 3.

    Args:
        bands: of its input's input.
        layer: the convolution, which pads columns.
        form: what is done to its input before, at each place for itself.
        scale: how many rows that makes of each row.
    """
    for i, band in enumerate(bands):
        above, below = [b[:, :, -1:] for b in bands[max(i - 1, 0) : i]], [b[:, :, :1] for b in bands[i + 1 : i + 2]]
        made = form(torch.cat([*above, band, *below], dim=2))
        spare = scale - 1  # of the rows that a neighbour's row has become, one is read
        made = made[:, :, spare * len(above) : made.shape[2] - spare * len(below)]
        yield _plain(layer(F.pad(made, (0, 0, int(not above), int(not below)))))


def _halved(bands: Bands, layer: nn.Module) -> Iterator[Tensor]:
    """Bands of ``Downsample2D``: a convolution of stride 2, of a row and a column of zeros behind the last."""
    for i, band in enumerate(bands):
        below = [b[:, :, :1] for b in bands[i + 1 : i + 2]]
        yield _plain(layer(F.pad(torch.cat([band, *below], dim=2), (0, 1, 0, int(not below)))))


def _plain(x: Tensor) -> Tensor:
    """A convolution's result, a matrix for a moment: else onnxruntime keeps it in its blocked layout as well, for others."""
    return x.flatten(2).reshape(x.shape)
