"""What diffusers' modules make of the ``native`` graphs' inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.choices import PROMPTS
from exporters.layouts.prompts import token_ids
from exporters.layouts.spec import GraphOptions
from exporters.modulations import modulation_layout
from exporters.reference.case import (
    Case,
    Inputs,
    Maker,
    as_sampled,
    draw_latents,
    encoded_picture,
    encoder_pictures,
    normal,
    text_cases,
)
from exporters.student.student import Student


def _text(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    cases = []
    joint = student.configs["transformer"]["joint_attention_dim"]
    for prompt in PROMPTS:
        ids = {name: token_ids(student, name, options, prompt) for name in models}
        clips = [
            models[name](torch.from_numpy(ids[name]), output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")
        ]
        states = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)
        states = F.pad(states, (0, joint - states.shape[-1]))
        if options.keep_t5:
            t5 = models["text_encoder_3"](torch.from_numpy(ids["text_encoder_3"])).last_hidden_state
        else:
            t5 = torch.zeros(1, 1, joint)  # diffusers' zero tokens, of which the graph gives one
        pooled = torch.cat([clip.text_embeds for clip in clips], dim=-1)
        names = ("input_ids", "input_ids_2", "input_ids_3")
        given = {name: ids[component] for name, component in zip(names, ids, strict=False)}
        cases.append(Case(given, [torch.cat([states, t5], dim=1).numpy(), pooled.numpy()]))
    return cases


def _modulations(transformer: Any, timesteps: Tensor, pooled: Tensor) -> Tensor:
    """Diffusers' AdaLN layers, one after another, in the conditioner's order: ``[steps, rows, channels]``."""
    temb = transformer.time_text_embed(timesteps, pooled.expand(len(timesteps), -1))
    rows = []
    for name, kinds in modulation_layout(transformer.config):
        norm = transformer.get_submodule(name)
        chunks = norm.linear(norm.silu(temb)).chunk(len(kinds), dim=-1)
        rows += [chunk + 1 if kind == "scale" else chunk for chunk, kind in zip(chunks, kinds, strict=True)]
    return torch.stack(rows, dim=1)


def _conditioner(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    size = student.configs["transformer"]["pooled_projection_dim"]
    cases = []
    for pooled in [*(pooled for _, pooled in inputs.texts.encoded), *(normal(rng, 1, size) for rng in inputs.generators)]:
        table = _modulations(models["transformer"], torch.tensor(options.timesteps), torch.from_numpy(pooled))
        cases.append(Case({"pooled_projections": pooled}, [table.numpy()]))
    return cases


def _denoiser(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    """The whole transformer of diffusers, with all its zero tokens, at the first and the last step."""
    transformer = models["transformer"]
    tokens = options.clip_tokens + (options.max_sequence_length if options.keep_t5 else 0)
    zeros = 0 if options.keep_t5 else options.max_sequence_length
    cases = []
    for timestep, rng, states, text in text_cases(student, options, inputs, tokens):
        latents, pooled = draw_latents(student, options, rng), torch.from_numpy(text)
        modulation = _modulations(transformer, torch.tensor([timestep]), pooled)[0]
        full = np.pad(states, ((0, 0), (0, zeros), (0, 0)))
        velocity = transformer(torch.from_numpy(latents), torch.from_numpy(full), pooled, torch.tensor([timestep])).sample
        given = full if options.keep_t5 else full[:, : tokens + 1]
        ports = {"hidden_states": latents, "encoder_hidden_states": given, "modulation": modulation.numpy()}
        cases.append(Case(ports, [velocity.numpy()]))
    return cases


def _vae_decoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    vae = models["vae"]
    cases = []
    for latents in [
        as_sampled(models, encoded_picture(models, options)),
        *(draw_latents(student, options, g) for g in inputs.generators),
    ]:
        decoded = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
        cases.append(Case({"latent_sample": latents}, [(decoded / 2 + 0.5).clamp(0, 1).numpy()]))
    return cases


def _vae_encoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    vae, cases = models["vae"], []
    for picture in encoder_pictures(options, inputs):
        encoded = vae.encode(torch.from_numpy(picture))
        law = [encoded.latents] if "latents" in encoded else [encoded.latent_dist.mean, encoded.latent_dist.logvar]
        outputs = [
            as_sampled(models, law[0].numpy()),
            *(part.numpy() + 2 * math.log(vae.config.scaling_factor) for part in law[1:]),
        ]
        cases.append(Case({"sample": picture / 2 + 0.5}, outputs))
    return cases


CASES: dict[str, Maker] = {
    "text_encoder": _text,
    "conditioner": _conditioner,
    "denoiser": _denoiser,
    "vae_decoder": _vae_decoder,
    "vae_encoder": _vae_encoder,
}
