"""A T5 encoder whose fp16 form cannot overflow.

Layers as in transformers' ``T5EncoderModel`` (Raffel et al. 2020, arXiv 1910.10683; gated GELU of v1.1). No attention mask,
as in diffusers' SD3 pipeline: padding tokens take part.

T5-XXL leaves fp16's range in the feed-forward's output and the residual stream (transformers keeps ``wo`` in fp32 for
that reason). Here the residual stream is fp32, gates are multiplied in fp32, and in fp16 graphs what they make is divided by
``2**8`` before ``wo`` and its output multiplied by it: powers of two, so nothing is rounded, and both may reach 1.6e7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.restructure.attention import attend
from exporters.restructure.base import Linear, Module, RestructuredModule, TokenEmbedding, constant
from exporters.restructure.clip import activation
from exporters.student.weights.weight import Weight

FP16_HEADROOM = 2.0**8


class _T5Norm(nn.Module):
    """RMS norm over channels, in fp32."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _SelfAttention(Module):
    def __init__(self, config: Mapping[str, Any], first: bool) -> None:
        super().__init__()
        inner = config["num_heads"] * config["d_kv"]
        self.heads = config["num_heads"]
        for name in ("q", "k", "v"):
            self.add_module(name, Linear(config["d_model"], inner, bias=False))
        self.o = Linear(inner, config["d_model"], bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config["relative_attention_num_buckets"], config["num_heads"])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = self.q(x), self.k(x), self.v(x)
        return self.o(attend(self, query, key, value, bias, self.heads, 1.0, False))


class _FeedForward(Module):
    recomputed = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.gated = config["is_gated_act"]
        self.act = activation(config["dense_act_fn"], "text_encoder_3")
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            self.add_module(name, Linear(config["d_model"], config["d_ff"], bias=False))
        self.wo = Linear(config["d_ff"], config["d_model"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.wi_0(x) if self.gated else self.wi(x)).to(torch.float32)
        if self.gated:  # in fp32: each may fit fp16 where their product does not
            hidden = hidden * self.wi_1(x).to(torch.float32)
        if self.wo.weight.dtype != torch.float16:
            return self.wo(hidden)
        return self.wo(hidden / FP16_HEADROOM).to(torch.float32) * FP16_HEADROOM


def _block(config: Mapping[str, Any], first: bool) -> Module:
    def norm() -> _T5Norm:
        return _T5Norm(config["d_model"], config["layer_norm_epsilon"])

    attend = Module(SelfAttention=_SelfAttention(config, first), layer_norm=norm())
    return Module(layer=nn.ModuleList([attend, Module(DenseReluDense=_FeedForward(config), layer_norm=norm())]))


def relative_buckets(buckets: int, max_distance: int) -> list[int]:
    """Bucket of each distance key - query from ``-max_distance`` to ``max_distance``; beyond, the ends repeat.

    Exact near, logarithmic far, both directions apart. The logarithm is taken in fp32, as in transformers: a bucket's edge
    may fall on an integer distance.

    >>> relative_buckets(8, 4)
    [3, 3, 2, 1, 0, 5, 6, 7, 7]
    """
    half = buckets // 2
    near = half // 2
    with torch.device("cpu"):
        distance = torch.arange(-max_distance, max_distance + 1)
        size = distance.abs()
        far = near + (torch.log(size.float() / near) / math.log(max_distance / near) * (half - near)).nan_to_num(neginf=0).to(
            torch.long
        )
        bucket = torch.where(size < near, size, far.clamp(max=half - 1)) + (distance > 0) * half
    return bucket.tolist()


class T5Encoder(RestructuredModule):
    """A T5 encoder under transformers' tensor names.

    Args:
        config: the encoder's configuration.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.shared = TokenEmbedding(config["vocab_size"], config["d_model"])
        self.max_distance = config["relative_attention_max_distance"]
        self.relative_buckets = relative_buckets(config["relative_attention_num_buckets"], self.max_distance)
        self.buckets = nn.Buffer(torch.empty(len(self.relative_buckets), dtype=torch.int64))
        self.encoder = Module(
            block=nn.ModuleList([_block(config, first=i == 0) for i in range(config["num_layers"])]),
            final_layer_norm=_T5Norm(config["d_model"], config["layer_norm_epsilon"]),
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[batch, tokens]`` to ``[batch, tokens, d_model]``, in fp32."""
        hidden = self.shared(input_ids).to(torch.float32)
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        by_distance = table(self.buckets)  # [2 max_distance + 1, heads]
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        distance = (position[None, :] - position[:, None]).clamp(-self.max_distance, self.max_distance)
        bias = F.embedding(distance + self.max_distance, by_distance).permute(2, 0, 1)[None]  # [1, heads, tokens, tokens]
        for block in self.encoder.block:
            attend, feed = block.layer
            hidden = hidden + attend.SelfAttention(attend.layer_norm(hidden), bias)
            hidden = hidden + feed.DenseReluDense(feed.layer_norm(hidden))
        return self.encoder.final_layer_norm(hidden)

    def weights(self, component: Mapping[str, Weight]) -> dict[str, Weight]:
        """Transformers' tensors, and the bucket of each distance."""
        weights = {name: component[name] for name in self.state_dict() if name != "buckets"}
        return weights | {
            "buckets": constant(np.array(self.relative_buckets, np.int64), "text_encoder_3: buckets of relative positions")
        }
