"""A CLIP text encoder that computes what SD3 reads of it and nothing else.

SD3 reads two things: the hidden state before the last layer (``hidden_states[-2]``, without the final norm), and the
projection of the final norm at the end-of-text token. Exact pruning: of the last layer, only the end-of-text token's
output is ever used. Its query, output projection and feed-forward run on that one token; keys and values need all tokens
that it sees. Of SD3's CLIP-G (32 layers, 77 tokens) that saves most of one layer and of the final norm's work.

Layers as in transformers' ``CLIPTextModelWithProjection`` (Radford et al. 2021, arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.errors import Complaint, ExportError
from exporters.restructure.attention import attend
from exporters.restructure.base import Linear, Module, RestructuredModule, TokenEmbedding

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
LEGACY_EOS = 2  # what CLIP configurations said before transformers#24773; the end is then the highest id
MASKED = -1.0e4  # exp(-1e4) is 0 in fp32; fits fp16


def activation(name: str, component: str) -> Callable[[Tensor], Tensor]:
    """The activation function of that name.

    Raises:
        ExportError: it is not one that text encoders of this family use.
    """
    if name not in ACTIVATIONS:
        raise ExportError(
            f"{component} cannot be exported.",
            [Complaint(component, "unknown activation", " or ".join(ACTIVATIONS), name)],
        )
    return ACTIVATIONS[name]


class _ClipAttention(Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, Linear(channels, channels))

    def forward(self, queries: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = self.q_proj(queries), self.k_proj(tokens), self.v_proj(tokens)
        return self.out_proj(attend(self, query, key, value, bias, self.heads, self.scale, bias is None))


class _ClipLayer(Module):
    recomputed = True

    def __init__(self, config: Mapping[str, Any], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        channels = config["hidden_size"]
        self.act = act
        self.self_attn = _ClipAttention(channels, config["num_attention_heads"])
        self.layer_norm1 = nn.LayerNorm(channels, eps=config["layer_norm_eps"])
        self.layer_norm2 = nn.LayerNorm(channels, eps=config["layer_norm_eps"])
        self.mlp = Module(fc1=Linear(channels, config["intermediate_size"]), fc2=Linear(config["intermediate_size"], channels))

    def forward(self, hidden: Tensor, only: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """All tokens, or (with ``only``, an index ``[1]``, and the bias of its row) the output of one."""
        normed = self.layer_norm1(hidden)
        if only is not None:
            hidden = hidden.index_select(1, only)
            attended = self.self_attn(normed.index_select(1, only), normed, bias)
        else:
            attended = self.self_attn(normed, normed, None)
        hidden = hidden + attended
        return hidden + self.mlp.fc2(self.act(self.mlp.fc1(self.layer_norm2(hidden))))


class ClipTextModel(RestructuredModule):
    """A CLIP text encoder under transformers' tensor names.

    Args:
        config: the encoder's configuration.
        component: its name, for complaints.
    """

    def __init__(self, config: Mapping[str, Any], component: str) -> None:
        super().__init__()
        channels = config["hidden_size"]
        self.eos_token_id = config["eos_token_id"]
        act = activation(config["hidden_act"], component)
        self.text_model = Module(
            embeddings=Module(
                token_embedding=TokenEmbedding(config["vocab_size"], channels),
                position_embedding=nn.Embedding(config["max_position_embeddings"], channels),
            ),
            encoder=Module(layers=nn.ModuleList([_ClipLayer(config, act) for _ in range(config["num_hidden_layers"])])),
            final_layer_norm=nn.LayerNorm(channels, eps=config["layer_norm_eps"]),
        )
        self.text_projection = Linear(channels, config["projection_dim"], bias=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token and position embeddings in fp32, ``[batch, tokens, channels]``."""
        embeddings = self.text_model.embeddings
        positions = embeddings.position_embedding.weight[: input_ids.shape[1]]
        return embeddings.token_embedding(input_ids).to(torch.float32) + positions.to(torch.float32)

    def end_of_text(self, input_ids: Tensor) -> Tensor:
        """Position of the (first) end-of-text token, ``[batch]``."""
        if self.eos_token_id == LEGACY_EOS:
            return input_ids.to(torch.int32).argmax(dim=-1)
        return (input_ids == self.eos_token_id).to(torch.int32).argmax(dim=-1)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """What SD3 reads.

        Args:
            input_ids: ``[1, tokens]``.

        Returns:
            The hidden state before the last layer ``[1, tokens, channels]``, and the pooled projection ``[1, projection]``.
        """
        hidden = self.embed(input_ids)
        layers = self.text_model.encoder.layers
        for layer in layers[:-1]:
            hidden = layer(hidden)
        end = self.end_of_text(input_ids)  # [1]
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        bias = ((positions > end[:, None]).to(torch.float32) * MASKED)[None, None]  # [1, 1, 1, tokens]
        last = layers[-1](hidden, end, bias)  # [1, 1, channels]
        pooled = self.text_projection(self.text_model.final_layer_norm(last[:, 0]))
        return hidden, pooled.to(torch.float32)

    def forward_all(self, input_ids: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Everything that transformers returns: pooled projection, final states, and the states between layers."""
        states = [self.embed(input_ids)]
        for layer in self.text_model.encoder.layers:
            states.append(layer(states[-1]))
        final = self.text_model.final_layer_norm(states[-1])
        index = self.end_of_text(input_ids)[:, None, None].expand(-1, 1, final.shape[-1])
        pooled = self.text_projection(final.gather(1, index)[:, 0])
        return pooled.to(torch.float32), final, states
