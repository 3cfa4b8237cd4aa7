"""What graphs are measured on: real prompts and a picture, and seeded draws at the scale that a graph sees in use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporters.choices import PROMPTS
from exporters.layouts.plan import plan_graphs
from exporters.layouts.prompts import token_ids
from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec
from exporters.ranges import Arrays
from exporters.streamed.module import stream
from exporters.student.student import Student


@dataclass(frozen=True)
class Case:
    """Inputs of a graph and what diffusers makes of them."""

    inputs: Arrays
    outputs: list[np.ndarray]


class Texts:
    """What prompts become in a student, made when it is first asked for; graphs that are measured one after another share it."""

    def __init__(self, student: Student, options: GraphOptions) -> None:
        self._student, self._options = student, options

    @functools.cached_property
    def encoded(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The text states of each prompt, CLIP's and then T5's or one null token, and the pooled projections.

        They are made by the restructured encoders, streamed, whatever the layout: they are inputs, and no reference.
        """
        options = replace(self._options, layout="native", dynamic=False)
        spec = plan_graphs(self._student, options)[0]
        encode = stream(spec)
        return [tuple(tensor.numpy() for tensor in encode(*self._ids(prompt, spec))) for prompt in PROMPTS]  # type: ignore[misc]

    def _ids(self, prompt: str, spec: GraphSpec) -> list[Tensor]:
        return [torch.from_numpy(token_ids(self._student, name, self._options, prompt)) for name in spec.components]


@dataclass(frozen=True)
class Inputs:
    """What a graph is measured on, beside token ids: what prompts become, and a generator for each draw."""

    texts: Texts
    generators: tuple[np.random.Generator, ...]


Maker = Callable[[Mapping[str, Any], Student, GraphOptions, Inputs], list[Case]]
"""Makes a graph's cases, from diffusers' modules of its components, the student, the shape of its graphs and the inputs."""


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def draw_latents(student: Student, options: GraphOptions, rng: np.random.Generator, batch: int = 1) -> np.ndarray:
    return normal(
        rng, batch, student.configs["transformer"]["in_channels"], options.height // VAE_SCALE, options.width // VAE_SCALE
    )


def smooth_picture(options: GraphOptions) -> np.ndarray:
    """A smooth picture with edges, in [-1, 1]: ``[1, 3, height, width]``."""
    rows, columns = np.mgrid[0 : options.height, 0 : options.width].astype(np.float32)
    waves = [np.sin(rows / 7 + columns / 11), np.cos(columns / 5), np.sign(np.sin(rows / 13) * np.cos(columns / 17))]
    return 0.9 * np.stack(waves)[None].astype(np.float32)


def encoder_pictures(options: GraphOptions, inputs: Inputs) -> list[np.ndarray]:
    """What a VAE's encoder is measured on, in [-1, 1]: a picture, and noise."""
    size = (1, 3, options.height, options.width)
    return [smooth_picture(options), *(rng.uniform(-1, 1, size).astype(np.float32) for rng in inputs.generators)]


def encoded_picture(models: Mapping[str, Any], options: GraphOptions) -> np.ndarray:
    """What the VAE's encoder makes of a picture, as a decoder takes it: ``[1, channels, height / 8, width / 8]``."""
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import retrieve_latents

    encoded = models["vae"].encode(torch.from_numpy(smooth_picture(options)))
    latents: np.ndarray = retrieve_latents(encoded, sample_mode="argmax").numpy()
    return latents


def as_sampled(models: Mapping[str, Any], latents: np.ndarray) -> np.ndarray:
    """Latents as a sampler leaves them."""
    config = models["vae"].config
    sampled: np.ndarray = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
    return sampled.astype(np.float32)


def text_cases(
    student: Student, options: GraphOptions, inputs: Inputs, tokens: int
) -> Iterator[tuple[float, np.random.Generator, np.ndarray, np.ndarray]]:
    """Timestep, generator, text states ``[1, tokens, joint]`` and pooled text of each case: the first step and the last in turn.

    Args:
        student: the student.
        options: the shape of its graphs.
        inputs: prompts and generators.
        tokens: of the states: CLIP's, and T5's where it is kept.
    """
    config = student.configs["transformer"]
    ends = options.timesteps[0], options.timesteps[-1]
    for i, rng in enumerate(inputs.generators):
        states, pooled = inputs.texts.encoded[i % len(PROMPTS)]
        yield ends[i % 2], rng, states[:, :tokens], pooled
        drawn = normal(rng, 1, tokens, config["joint_attention_dim"]), normal(rng, 1, config["pooled_projection_dim"])
        yield ends[(i + 1) % 2], rng, *drawn
