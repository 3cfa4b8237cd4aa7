"""The MMDiT's token work: one denoising step, given its modulations.

The arithmetic is that of diffusers' ``SD3Transformer2DModel`` (Esser et al. 2024, arXiv 2403.03206; dual attention and RMS
QK-norm of SD3.5-Medium included) with these exact rewrites:

- modulations come in ready made (:mod:`exporters.restructure.conditioning`);
- the null text tokens are one (:mod:`exporters.restructure.attention`);
- for a batch of one, ``layer_norm(x) * (1 + scale) + shift`` is a layer norm whose weight and bias are the modulation:
  one kernel instead of three passes over the tokens;
- the last block's text queries are never computed: its text outputs are thrown away.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.modulations import modulation_layout
from exporters.restructure.attention import NullForm, attend, null_bias, with_null_channels
from exporters.restructure.base import Conv2d, Linear, Module, RestructuredModule, prefixed
from exporters.restructure.conditioning import inner_dim
from exporters.restructure.positions import TABLE, FixedPositions, SeparablePositions
from exporters.student.weights.weight import Weight

EPS = 1e-6  # of every norm in diffusers' SD3 transformer
_MODULATED = re.compile(
    r"(transformer_blocks\.\d+\.(attn2?\.to_[qkv]|attn\.add_[qkv]_proj|ff(_context)?\.net\.0\.proj)|proj_out)\.weight"
)


class _RmsNorm(nn.Module):
    """RMS norm over a head's channels, in fp32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(torch.float32), self.weight.shape, self.weight, EPS).to(x.dtype)


class _Attention(Module):
    """Self-attention of the image tokens, or joint attention with the text tokens.

    Args:
        config: the transformer's configuration.
        joint: whether text tokens take part.
        text_out: whether their outputs are wanted.
        null_tokens: how many tokens the last text token stands for.

    Attributes:
        null_form: how it does.
    """

    null_form: NullForm = "channels"

    def __init__(self, config: Mapping[str, Any], joint: bool, text_out: bool, null_tokens: int) -> None:
        super().__init__()
        channels, self.head_dim = inner_dim(config), config["attention_head_dim"]
        self.heads, self.null_tokens, self.joint, self.text_out = (
            config["num_attention_heads"],
            null_tokens,
            joint,
            text_out,
        )
        projections = (
            ["to_q", "to_k", "to_v"] + (["add_k_proj", "add_v_proj"] if joint else []) + (["add_q_proj"] if text_out else [])
        )
        for name in projections:
            self.add_module(name, Linear(channels, channels))
        self.normed = config["qk_norm"] is not None
        if self.normed:
            norms = ["norm_q", "norm_k"] + (["norm_added_k"] if joint else []) + (["norm_added_q"] if text_out else [])
            for name in norms:
                self.add_module(name, _RmsNorm(self.head_dim))
        self.to_out = nn.ModuleList([Linear(channels, channels)])
        if text_out:
            self.to_add_out = Linear(channels, channels)

    def _heads(self, x: Tensor, projection: str, norm: str) -> Tensor:
        heads: Tensor = self.get_submodule(projection)(x).unflatten(-1, (self.heads, self.head_dim))
        return self.get_submodule(norm)(heads) if self.normed else heads

    def forward(self, image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
        query, key, value = self._heads(image, "to_q", "norm_q"), self._heads(image, "to_k", "norm_k"), self.to_v(image)
        if text is not None:
            if self.text_out:
                query = torch.cat([query, self._heads(text, "add_q_proj", "norm_added_q")], dim=1)
            key = torch.cat([key, self._heads(text, "add_k_proj", "norm_added_k")], dim=1)
            value = torch.cat([value, self.add_v_proj(text)], dim=1)
        scale, bias = self.head_dim**-0.5, None
        if text is not None and self.null_tokens > 1:
            if self.null_form == "channels":
                query, key = with_null_channels(query, key, self.null_tokens, scale)
            else:
                bias = null_bias(key.shape[1], self.null_tokens, key.device)
        mixed = attend(self, query.flatten(2), key.flatten(2), value, bias, self.heads, scale, False)
        if not self.text_out:
            return self.to_out[0](mixed), None
        size = image.shape[1]
        return self.to_out[0](mixed[:, :size]), self.to_add_out(mixed[:, size:])


class _FeedForward(Module):
    """Linear, tanh-approximated GELU, linear, under diffusers' names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Module(proj=Linear(channels, 4 * channels)), nn.Identity(), Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net.get_submodule("0.proj")(x), approximate="tanh"))


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``layer_norm(x) * scale + shift``; scale is 1 + scale already. Rank-1 modulations serve a batch of one."""
    if scale.ndim == 1:
        return F.layer_norm(x, (x.shape[-1],), scale, shift, EPS)
    return F.layer_norm(x, (x.shape[-1],), eps=EPS) * scale + shift


def reads_modulated(name: str) -> bool:
    """Whether the inputs of a weight's product are a modulated layer norm: factors on them fold into scale and shift.

    >>> reads_modulated("transformer_blocks.0.attn.to_q.weight"), reads_modulated("transformer_blocks.0.attn.to_out.0.weight")
    (True, False)
    """
    return _MODULATED.fullmatch(name) is not None


def null_tokens_as_bias(module: nn.Module) -> None:
    """Let one token stand for many by a bias on the scores, for exporters whose attention takes one at no cost."""
    for part in module.modules():
        if isinstance(part, _Attention):
            part.null_form = "bias"


class _Block(Module):
    """One MMDiT(-X) block."""

    recomputed = True

    def __init__(self, config: Mapping[str, Any], index: int, null_tokens: int) -> None:
        super().__init__()
        self.last = index == config["num_layers"] - 1
        self.attn = _Attention(config, joint=True, text_out=not self.last, null_tokens=null_tokens)
        self.attn2 = None
        if index in config["dual_attention_layers"]:
            self.attn2 = _Attention(config, joint=False, text_out=False, null_tokens=0)
        self.ff = _FeedForward(inner_dim(config))
        self.ff_context = None if self.last else _FeedForward(inner_dim(config))

    def forward(self, image: Tensor, text: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *rest = rows
        if self.attn2 is not None:
            shift2, scale2, gate2, *rest = rest
        if self.last:
            text_scale, text_shift = rest
        else:
            text_shift, text_scale, text_gate, text_ff_shift, text_ff_scale, text_ff_gate = rest

        normed = image  # both attentions see the block's input
        attended, text_attended = self.attn(_modulate(image, scale, shift), _modulate(text, text_scale, text_shift))
        image = image + gate * attended
        if self.attn2 is not None:
            image = image + gate2 * self.attn2(_modulate(normed, scale2, shift2), None)[0]
        image = image + ff_gate * self.ff(_modulate(image, ff_scale, ff_shift))
        if self.ff_context is None:
            return image, None
        text = text + text_gate * text_attended
        return image, text + text_ff_gate * self.ff_context(_modulate(text, text_ff_scale, text_ff_shift))


class _PatchEmbed(Module):
    """The patch convolution, under diffusers' name."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        patch = config["patch_size"]
        self.proj = Conv2d(config["in_channels"], inner_dim(config), patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2)


class Denoiser(RestructuredModule):
    """Latents, text states and one step's modulations to the predicted velocity.

    Args:
        config: the transformer's configuration.
        grid: patch rows and columns of a graph of fixed size; none for a dynamic size.
        null_tokens: how many zero tokens the last text token stands for; 0 where there is none.
    """

    def __init__(self, config: Mapping[str, Any], grid: tuple[int, int] | None, null_tokens: int = 0) -> None:
        super().__init__()
        channels = inner_dim(config)
        self.patch, self.out_channels = config["patch_size"], config["out_channels"] or config["in_channels"]
        counts = [len(kinds) for _, kinds in modulation_layout(config)]
        self.rows_of_block = [sum(counts[i : i + 2]) for i in range(0, len(counts) - 1, 2)]  # image stream and text stream
        self.pos_embed = _PatchEmbed(config)
        self.positions = FixedPositions(config, grid, channels) if grid else SeparablePositions(config, channels)
        self.context_embedder = Linear(config["joint_attention_dim"], config["caption_projection_dim"])
        self.transformer_blocks = nn.ModuleList([_Block(config, i, null_tokens) for i in range(config["num_layers"])])
        self.proj_out = Linear(channels, self.patch**2 * self.out_channels)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, modulation: Tensor) -> Tensor:
        """Predict the velocity.

        Args:
            hidden_states: noisy latents ``[batch, in_channels, height, width]``.
            encoder_hidden_states: text states ``[batch, tokens, joint_attention_dim]``.
            modulation: one row of the conditioner's table ``[modulations, channels]`` (batch of one), or
                ``[batch, modulations, channels]``.

        Returns:
            ``[batch, out_channels, height, width]``, in fp32.
        """
        batch, _, height, width = hidden_states.shape
        rows, columns = height // self.patch, width // self.patch
        taken = itertools.count()

        def take(count: int) -> list[Tensor]:
            indices = itertools.islice(taken, count)
            return [modulation[i] if modulation.ndim == 2 else modulation[:, i, None] for i in indices]

        image = self.pos_embed(hidden_states) + self.positions(rows, columns).to(torch.float32)
        text: Tensor | None = self.context_embedder(encoder_hidden_states).to(torch.float32)
        for block, count in zip(self.transformer_blocks, self.rows_of_block, strict=True):
            image, text = block(image, text, take(count))
        scale, shift = take(2)
        patches = self.proj_out(_modulate(image, scale, shift)).to(torch.float32)
        # In two steps, because Core ML has no more than five axes.
        lines = patches.reshape(batch * rows, columns, self.patch, self.patch, self.out_channels).transpose(1, 2)
        return lines.reshape(batch, height, width, self.out_channels).permute(0, 3, 1, 2)

    def weights(self, component: Mapping[str, Weight]) -> dict[str, Weight]:
        """Diffusers' tensors by the same names, and the positions from its table."""
        weights = {name: component[name] for name in self.state_dict() if not name.startswith("positions.")}
        return weights | prefixed("positions", self.positions.weights(component[TABLE]))
