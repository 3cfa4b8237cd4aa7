"""The conditioner: every AdaLN modulation of every step, once per image.

Conditioner split (exact). Each block of an MMDiT modulates its normalised inputs by ``linear(silu(temb))``, where
``temb = timestep_embedder(t) + text_embedder(pooled)`` depends on the step and the prompt but on no token. A few-step
student has a fixed handful of timesteps, so all of it is computed before the first step: one graph makes a table
``[steps, modulations, channels]``, and the denoiser takes one row of it at each step. A third of SD3.5-Medium's weights
(the AdaLN linears) leave the denoiser, and the timestep embedding becomes a constant computed in fp32 at export:
a runtime that rounds the sinusoid to bf16 (OpenVINO by default) cannot spoil it.

The rows and their order are those of :mod:`exporters.modulations`; scales leave the conditioner as ``1 + scale``,
ready to be multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.modulations import modulation_layout
from exporters.restructure.base import Linear, Module, RestructuredModule, as_tensor, constant, named, prefixed
from exporters.student.weights.weight import Weight

SINUSOID_CHANNELS = 256  # fixed in diffusers' CombinedTimestepTextProjEmbeddings


def inner_dim(config: Mapping[str, Any]) -> int:
    """Channels of the transformer's token streams."""
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def sinusoid(timesteps: Tensor) -> Tensor:
    """Sinusoidal timestep features ``[steps, 256]``, cosines first (Vaswani et al. 2017, as in diffusers ``Timesteps``)."""
    half = SINUSOID_CHANNELS // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=timesteps.device))
    angles = timesteps[:, None].to(torch.float32) * frequencies[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class EmbeddingMlp(Module):
    """Two linear layers with SiLU between, under diffusers' names."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.linear_1 = Linear(in_features, features)
        self.linear_2 = Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Modulations(Module):
    """All AdaLN linears: ``temb`` to the modulation table."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.channels = inner_dim(config)
        self.names = []
        kinds: list[str] = []
        for name, rows in modulation_layout(config):
            self.add_module(name.replace(".", "/"), Linear(self.channels, self.channels * len(rows)))
            self.names.append(name)
            kinds += rows
        self.is_scale = tuple(kind == "scale" for kind in kinds)
        self.one = nn.Buffer(torch.empty(1, len(kinds), 1))  # 1 for a scale's row, 0 for the others

    def forward(self, temb: Tensor) -> Tensor:
        """``temb`` ``[steps, channels]`` to ``[steps, modulations, channels]``, scales as 1 + scale."""
        activated = F.silu(temb.to(torch.float32))
        packed = torch.cat([self.get_submodule(name.replace(".", "/"))(activated) for name in self.names], dim=-1)
        return packed.unflatten(-1, (-1, self.channels)).to(torch.float32) + self.one

    def weights(self, component: Mapping[str, Weight]) -> dict[str, Weight]:
        """Diffusers' tensors, and which rows are scales."""
        weights = {name: component[_diffusers_name(name)] for name in self.state_dict() if name != "one"}
        ones = np.array(self.is_scale, np.float32).reshape(1, -1, 1)
        return weights | {"one": constant(ones, "transformer: which modulations are scales")}


class Conditioner(RestructuredModule):
    """Pooled text to the modulations of every step.

    Args:
        config: the transformer's configuration.
        timesteps: the sampler's timesteps (0 to 1000), one for each step.
    """

    def __init__(self, config: Mapping[str, Any], timesteps: Sequence[float]) -> None:
        super().__init__()
        self.timesteps = tuple(timesteps)
        self.text_embedder = EmbeddingMlp(config["pooled_projection_dim"], inner_dim(config))
        self.modulations = Modulations(config)
        self.time_embeddings = nn.Buffer(torch.empty(len(timesteps), inner_dim(config)))

    def forward(self, pooled_projections: Tensor) -> Tensor:
        """``[1, pooled]`` to ``[steps, modulations, channels]``."""
        return self.modulations(self.time_embeddings + self.text_embedder(pooled_projections))

    def weights(self, component: Mapping[str, Weight]) -> dict[str, Weight]:
        """Diffusers' tensors, and the time embeddings computed from them in fp32."""
        time = Weight(
            tuple(self.time_embeddings.shape),
            np.dtype(np.float32),
            lambda: embed_timesteps(component, self.timesteps),
            "transformer: time embeddings of the steps",
        )
        return (
            prefixed("modulations", self.modulations.weights(component))
            | prefixed("text_embedder", named(self.text_embedder, component, "time_text_embed.text_embedder"))
            | {"time_embeddings": time}
        )


def embed_timesteps(component: Mapping[str, Weight], timesteps: Sequence[float]) -> np.ndarray:
    """The timestep MLP applied to each timestep, in fp32: ``[steps, channels]``."""
    prefix = "time_text_embed.timestep_embedder"
    hidden = sinusoid(torch.tensor(timesteps, dtype=torch.float32))
    for i, activate in ((1, F.silu), (2, lambda x: x)):
        weight, bias = (as_tensor(component[f"{prefix}.linear_{i}.{kind}"]) for kind in ("weight", "bias"))
        hidden = activate(F.linear(hidden, weight, bias))
    return hidden.numpy()


def _diffusers_name(name: str) -> str:
    """A parameter's name in diffusers, from its name in :class:`Modulations` (where dots cannot name a module).

    >>> _diffusers_name("transformer_blocks/0/norm1.weight")
    'transformer_blocks.0.norm1.linear.weight'
    """
    layer, _, kind = name.rpartition(".")
    return f"{layer.replace('/', '.')}.linear.{kind}"
