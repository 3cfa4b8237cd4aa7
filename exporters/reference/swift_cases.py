"""What diffusers' modules make of the ``swift`` programs' inputs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from exporters.choices import PROMPTS
from exporters.layouts.prompts import token_ids
from exporters.layouts.spec import GraphOptions
from exporters.layouts.swift_client import T5_TOKENS
from exporters.reference.case import Case, Inputs, Maker, draw_latents, normal, text_cases
from exporters.reference.optimum_cases import (
    optimum_vae_decoder,
)
from exporters.student.student import Student


def _clip(component: str) -> Maker:
    def cases(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
        clip_cases = []
        for prompt in PROMPTS:
            ids = token_ids(student, component, options, prompt)
            out = models[component](torch.from_numpy(ids), output_hidden_states=True)
            clip_cases.append(
                Case({"input_ids": ids.astype(np.float32)}, [out.hidden_states[-2].numpy(), out.text_embeds.numpy()])
            )
        return clip_cases

    return cases


def _t5(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    """The mask must have no effect, because diffusers passes T5 none."""
    cases = []
    for prompt, rng in zip(PROMPTS, itertools.cycle(inputs.generators)):
        ids = token_ids(student, "text_encoder_3", options, prompt)
        states = models["text_encoder_3"](torch.from_numpy(ids)).last_hidden_state.transpose(1, 2)[:, :, None]
        mask = rng.integers(0, 2, ids.shape).astype(np.float32)
        cases.append(Case({"input_ids": ids.astype(np.float32), "attention_mask": mask}, [states.numpy()]))
    return cases


def _transformer(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    """The first of each pair with all its T5 or zero tokens, at a step of the client's.

    The second must not matter, unless pictures are guided.
    """
    tokens, zeros = options.clip_tokens, 0 if options.keep_t5 else T5_TOKENS
    client, cases = options.client, []  # none in bundles of version 1
    for timestep, rng, text, pool in text_cases(student, options, inputs, tokens + T5_TOKENS - zeros):
        latents, step = draw_latents(student, options, rng, 2), options.timesteps.index(timestep)
        told, scale = (client.timesteps[step], client.scales[step]) if client else (timestep, 1.0)
        states = np.pad(np.concatenate([text, normal(rng, *text.shape)]), ((0, 0), (0, zeros), (0, 0)))
        pooled = np.concatenate([pool, normal(rng, *pool.shape)])
        ports = {
            "latent_image_embeddings": latents,
            "timestep": np.array([told, told if options.guided else 0], np.float32),
            "token_level_text_embeddings": np.ascontiguousarray(states.transpose(0, 2, 1)[:, :, None]),
            "pooled_text_embeddings": pooled[:, :, None, None],
        }
        velocities = []
        for half in (slice(1), slice(1, 2) if options.guided else slice(1)):
            taken = (torch.from_numpy(array[half]) for array in (latents, states, pooled))
            velocities.append(models["transformer"](*taken, torch.tensor([timestep])).sample.numpy() * np.float32(scale))
        cases.append(Case(ports, [np.concatenate(velocities)]))
    return cases


def _vae_decoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    cases = optimum_vae_decoder(models, student, options, inputs)
    return [Case({"z": case.inputs["latent_sample"]}, case.outputs) for case in cases]


CASES: dict[str, Maker] = {
    "text_encoder": _clip("text_encoder"),
    "text_encoder_2": _clip("text_encoder_2"),
    "text_encoder_3": _t5,
    "transformer": _transformer,
    "vae_decoder": _vae_decoder,
}
