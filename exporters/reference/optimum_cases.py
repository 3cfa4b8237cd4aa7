"""What diffusers' modules make of the ``optimum`` graphs' inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from exporters.choices import PROMPTS
from exporters.layouts.prompts import token_ids
from exporters.layouts.spec import GraphOptions
from exporters.reference.case import Case, Inputs, Maker, draw_latents, encoded_picture, encoder_pictures, text_cases
from exporters.student.student import Student


def _clip(component: str) -> Maker:
    def cases(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
        ids = np.concatenate([token_ids(student, component, options, prompt) for prompt in PROMPTS])
        out = models[component](torch.from_numpy(ids), output_hidden_states=True)
        return [
            Case(
                {"input_ids": ids},
                [out.text_embeds.numpy(), out.last_hidden_state.numpy(), *(s.numpy() for s in out.hidden_states)],
            )
        ]

    return cases


def _t5(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    ids = np.concatenate([token_ids(student, "text_encoder_3", options, prompt) for prompt in PROMPTS])
    return [Case({"input_ids": ids}, [models["text_encoder_3"](torch.from_numpy(ids)).last_hidden_state.numpy()])]


def _transformer(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    """Batches of one and two, other text lengths and a picture that is not square: all of it is dynamic."""
    config, cases = student.configs["transformer"], []
    tokens, zeros = options.clip_tokens, options.max_sequence_length
    if options.keep_t5:
        tokens, zeros = tokens + zeros, 0
    for i, (timestep, rng, states, pooled) in enumerate(text_cases(student, options, inputs, tokens)):
        batch = 1 + i % 2  # what is drawn, twice
        latents = draw_latents(student, options, rng, batch)
        ports = {
            "hidden_states": latents if batch == 1 else np.ascontiguousarray(latents[:, :, : config["patch_size"]]),
            "encoder_hidden_states": np.pad(states, ((0, 0), (0, zeros), (0, 0))) if batch == 1 else states.repeat(2, 0),
            "pooled_projections": pooled.repeat(batch, 0),
            "timestep": np.asarray([timestep] * batch, np.float32),
        }
        velocity = models["transformer"](*(torch.from_numpy(array) for array in ports.values())).sample
        cases.append(Case(ports, [velocity.numpy()]))
    return cases


def optimum_vae_decoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    given = [encoded_picture(models, options), *(draw_latents(student, options, rng) for rng in inputs.generators)]
    return [Case({"latent_sample": z}, [models["vae"].decode(torch.from_numpy(z)).sample.numpy()]) for z in given]


def _vae_encoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    cases = []
    for picture in encoder_pictures(options, inputs):
        encoded = models["vae"].encode(torch.from_numpy(picture))
        values = encoded.latents if "latents" in encoded else encoded.latent_dist.parameters
        cases.append(Case({"sample": picture}, [values.numpy()]))
    return cases


CASES: dict[str, Maker] = {
    "text_encoder": _clip("text_encoder"),
    "text_encoder_2": _clip("text_encoder_2"),
    "text_encoder_3": _t5,
    "transformer": _transformer,
    "vae_decoder": optimum_vae_decoder,
    "vae_encoder": _vae_encoder,
}
