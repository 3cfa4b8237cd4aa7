"""The native graphs one after another in torch: text to latents to picture, differentiable from end to end.

The chain computes what a ``native`` bundle computes; its weights are streamed
(:mod:`exporters.streamed.module`) and may be replaced by what a profile would store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from exporters.guidance import Side, guided_velocity
from exporters.layouts.plan import plan_graphs
from exporters.layouts.prompts import encoded_ids
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec
from exporters.modulations import gates_of
from exporters.scales import Size, step_sizes
from exporters.streamed.module import Product, Streaming, stream
from exporters.student.student import Student
from exporters.student.tokenizers import load_tokenizer

Condition = tuple[Tensor, Tensor]
"""Text states ``[images, tokens, joint]`` and modulations ``[steps, images, rows, channels]``."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn: latents ``[images, channels, height / 8, width / 8]`` and pictures ``[images, 3, height, width]``."""

    latents: Tensor
    pictures: Tensor


class TorchPipeline:
    """A student in torch.

    Args:
        student: the student.
        options: ``native``, of a fixed size.
        sampling: the schedule.
        streaming: how its products get their weights.
    """

    def __init__(self, student: Student, options: GraphOptions, sampling: Sampling, streaming: Streaming | None = None) -> None:
        self.student, self.options, self.sampling = student, options, sampling
        self.streaming = streaming or Streaming({})
        self._specs = {spec.name: spec for spec in plan_graphs(student, options)}

    def spec(self, graph: str) -> GraphSpec:
        """A graph's specification."""
        return self._specs[graph]

    @cached_property
    def _modules(self) -> dict[str, Any]:
        return {name: stream(spec, self.streaming) for name, spec in self._specs.items()}

    def products(self) -> list[Product]:
        """Every layer with a weight matrix."""
        layers = (layer for module in self._modules.values() for layer in module.modules())
        return [layer.forward for layer in layers if isinstance(layer.forward, Product)]

    @cached_property
    def _tokenizers(self) -> dict[str, Any]:
        return {name: load_tokenizer(self.student, name) for name in self._specs["text_encoder"].components}

    def token_ids(self, prompt: str) -> list[Tensor]:
        """Ids for every kept encoder, ``[1, tokens]`` each."""
        ids = (encoded_ids(tokenizer, name, self.options, prompt) for name, tokenizer in self._tokenizers.items())
        return [torch.from_numpy(one) for one in ids]

    def condition(self, prompts: Sequence[str]) -> dict[Side, Condition]:
        """What the denoiser is told of each prompt, and of what it is guided by."""
        guidance, sigmas = self.sampling.guidance, self.sampling.sigmas
        states, modulations = self._condition(prompts)
        sides: dict[Side, Condition] = {"prompt": (states, modulations)}
        wanted = guidance.sides(sigmas)
        if "negative" in wanted:
            negative_states, negative_modulations = self._condition([guidance.negative_prompt])
            sides["negative"] = negative_states.expand_as(states), negative_modulations.expand_as(modulations)
        if "skipped" in wanted:
            is_open = torch.ones(modulations.shape[2], 1)
            is_open[gates_of(self.student.configs["transformer"], guidance.skip_guidance_layers)] = 0
            sides["skipped"] = states, modulations * is_open
        return sides

    def _condition(self, prompts: Sequence[str]) -> Condition:
        encoded = [self.encode(prompt) for prompt in prompts]
        tables = [self.modulations(pooled) for _, pooled in encoded]
        return torch.cat([states for states, _ in encoded]), torch.stack(tables, dim=1)

    def encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Text states ``[1, tokens, joint]`` and the pooled text ``[1, pooled]``."""
        states, pooled = self._modules["text_encoder"](*self.token_ids(prompt))
        return states, pooled

    def modulations(self, pooled: Tensor) -> Tensor:
        """The modulations of every step, ``[steps, rows, channels]``."""
        table: Tensor = self._modules["conditioner"](pooled)
        return table

    def sample(self, condition: Mapping[Side, Condition], noise: Tensor, step_noise: Tensor | None = None) -> Tensor:
        """Latents from noise, both ``[images, channels, height / 8, width / 8]``.

        Args:
            condition: of :meth:`condition`.
            noise: the initial latents.
            step_noise: what a re-noising sampler adds, ``[steps, images, ...]``.
        """
        steps = len(self.sampling.sigmas) - 1
        sizes = step_sizes(self.sampling.scales, noise.shape[-2:], steps)
        latents, terms = noise[..., : sizes[0][0], : sizes[0][1]], [noise]
        for i, sigma in enumerate(self.sampling.sigmas[:-1]):
            velocity = self._guided(i, latents, condition)
            if self.sampling.method == "dpmpp":
                terms.append(latents - sigma * velocity)
                latents = torch.stack([w * term for w, term in zip(self.sampling.combinations[i], terms, strict=True)]).sum(0)
            else:
                latents = self.step(i, latents, velocity, step_noise, sizes[min(i + 1, steps - 1)])
        return latents

    def _guided(self, i: int, latents: Tensor, condition: Mapping[Side, Condition]) -> Tensor:
        sampling = self.sampling
        return guided_velocity(sampling.guidance, sampling.sigmas, i, lambda side: self.velocity(i, latents, condition[side]))

    def velocity(self, i: int, latents: Tensor, condition: Condition) -> Tensor:
        """What the denoiser predicts at step ``i``, shaped like the latents."""
        states, modulations = condition
        rows = modulations[i] if len(latents) > 1 else modulations[i, 0]  # a single picture takes the graph's own path
        velocity: Tensor = self._modules["denoiser"](latents, states, rows)
        return velocity

    def step(
        self, i: int, latents: Tensor, velocity: Tensor, step_noise: Tensor | None = None, size: Size | None = None
    ) -> Tensor:
        """The latents after step ``i``, of a sampler that does not look back; arguments as of :meth:`sample`."""
        sigmas = self.sampling.sigmas
        if self.sampling.method == "euler":
            return latents + (sigmas[i + 1] - sigmas[i]) * velocity
        assert step_noise is not None
        clean, noise = latents - sigmas[i] * velocity, step_noise[i]
        if size is not None and clean.shape[-2:] != size:
            clean = interpolate(clean, size=size, mode=self.sampling.upscale_mode)
        return (1 - sigmas[i + 1]) * clean + sigmas[i + 1] * noise[..., : clean.shape[-2], : clean.shape[-1]]

    def draw(self, prompts: Sequence[str], noise: Tensor, step_noise: Tensor | None = None) -> Drawn:
        """Draw one picture of each prompt; arguments as of :meth:`sample`."""
        latents = self.sample(self.condition(prompts), noise, step_noise)
        return Drawn(latents, self.decode(latents))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``[images, 3, height, width]`` of latents."""
        pictures: Tensor = self._modules["vae_decoder"](latents)
        return pictures

    def noise(self, images: int, seed: int) -> tuple[Tensor, Tensor]:
        """Initial noise of some pictures and what a re-noising sampler adds; picture i is the same whatever their number."""
        options, channels = self.options, self.student.configs["transformer"]["in_channels"]
        shape = (channels, options.height // VAE_SCALE, options.width // VAE_SCALE)
        draws = []
        for i in range(images):
            generator = torch.Generator().manual_seed((seed << 20) + i)
            draws.append(torch.randn(len(self.sampling.sigmas), *shape, generator=generator))
        stacked = torch.stack(draws, dim=1)
        return stacked[0], stacked[1:]
