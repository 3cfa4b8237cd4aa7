"""A ``StableDiffusion3Pipeline`` whose components are graphs in another runtime, as optimum's pipelines are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.plain_export import CLIPS
from exporters.student.scheduler import reference_scheduler
from exporters.student.student import TOKENIZERS, Student
from exporters.student.tokenizers import load_tokenizer
from exporters.student.weights.templates import reference_module

Graph = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
"""Inputs by name to outputs in order."""


class _StandIn(nn.Module):
    """A component without weights: its own configuration, and a graph that computes for it."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, config: Any, graph: Graph) -> None:
        super().__init__()
        self.config, self.graph = config, graph

    def run(self, **inputs: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out) for out in self.graph({name: tensor.numpy() for name, tensor in inputs.items()})]


class _Clip(_StandIn):
    def forward(self, input_ids: Tensor, output_hidden_states: bool) -> Any:
        from transformers.models.clip.modeling_clip import CLIPTextModelOutput

        pooled, states = self.run(input_ids=input_ids)
        return CLIPTextModelOutput(text_embeds=pooled, hidden_states=(states, states))  # the last but one is what is asked for


class _Transformer(_StandIn):
    def __init__(self, config: Any, graph: Graph, sinusoid: nn.Module | None) -> None:
        super().__init__(config, graph)
        self.sinusoid = sinusoid

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, **_: object
    ) -> tuple[Tensor]:
        inputs = {"hidden_states": hidden_states, "encoder_hidden_states": encoder_hidden_states}
        time = timestep.float() if self.sinusoid is None else self.sinusoid(timestep.float())
        return (self.run(**inputs, pooled_projections=pooled_projections, timestep=time)[0],)


class _Vae(_StandIn):
    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.run(latent_sample=latents)[0],)


def pipeline_of(student: Student, graphs: Mapping[str, Graph], sinusoid_outside: bool = False) -> Any:
    """The pipeline without T5.

    Args:
        student: whose configurations, tokenizers and scheduler.
        graphs: ``text_encoder``, ``text_encoder_2``, ``transformer``, ``vae_decoder``, with the ports of
            :mod:`benchmarks.peers.plain_export`.
        sinusoid_outside: whether the transformer takes the timestep's sinusoid.
    """
    from diffusers import StableDiffusion3Pipeline

    # on the meta device: configurations as diffusers completes them, and no weights
    empty = {name: reference_module(name, student.configs[name]) for name in (*CLIPS, "transformer", "vae")}
    sinusoid = empty["transformer"].time_text_embed.time_proj if sinusoid_outside else None
    parts: dict[str, Any] = {name: _Clip(empty[name].config, graphs[name]) for name in CLIPS}
    parts["transformer"] = _Transformer(empty["transformer"].config, graphs["transformer"], sinusoid)
    parts["vae"] = _Vae(empty["vae"].config, graphs["vae_decoder"])
    parts["text_encoder_3"] = None
    for component, name in TOKENIZERS.items():
        parts[name] = load_tokenizer(student, component) if parts[component] is not None else None
    pipeline: Any = StableDiffusion3Pipeline(**parts, scheduler=reference_scheduler(student))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
