"""What happens between the graphs, for each layout of a bundle: prompts to conditions, conditions to velocities, latents to RGB.

Every graph is run for all prompts before the next one, so that each is loaded once for a stage, however many prompts there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from deploy.bundle.manifest import Manifest
from deploy.errors import BundleError, Complaint
from exporters.choices import ENCODER_IDS
from exporters.image_to_image import LOG_VARIANCE
from exporters.layouts.swift_client import text_states, transformer_inputs
from exporters.modulations import gates_of

Ids = Mapping[str, np.ndarray]
"""Token ids of one prompt by graph input, each ``[1, length]``."""
Condition = tuple[np.ndarray, np.ndarray]
"""What the denoiser is told of one prompt: text states, and modulations (native) or pooled states (the others)."""
Law = tuple[np.ndarray, np.ndarray | None]
"""Mean and standard deviation of a picture's latents, as a sampler has them; no deviation where the VAE draws none."""
CLIPS = ("text_encoder", "text_encoder_2")


class GraphRunner(Protocol):
    """What runs a bundle's graphs: a pipeline."""

    manifest: Manifest

    def run(self, graph: str, inputs: dict[str, np.ndarray], /) -> list[np.ndarray]: ...


class Stages(Protocol):
    """The three stages of a picture."""

    def conditions(self, prompts: Sequence[Ids]) -> list[Condition]:
        """One for each prompt."""
        ...

    def velocity(self, latents: np.ndarray, condition: Condition, step: int) -> np.ndarray:
        """The network's prediction ``[1, channels, height / 8, width / 8]`` for latents of that shape."""
        ...

    def without(self, condition: Condition, blocks: Collection[int]) -> Condition:
        """A condition with which the network leaves some of its blocks out.

        Raises:
            BundleError: the bundle's graphs cannot.
        """
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """RGB ``[1, 3, height, width]`` in [0, 1]."""
        ...

    def encode(self, picture: np.ndarray) -> Law:
        """The law of the latents of RGB ``[1, 3, height, width]`` in [0, 1], of a bundle that has the VAE's encoder."""
        ...


def stages_of(runner: GraphRunner) -> Stages:
    """The stages of the runner's bundle."""
    layouts: dict[str, type[_Native | _Optimum | _Swift]] = {"native": _Native, "optimum": _Optimum, "swift": _Swift}
    return layouts[runner.manifest.layout](runner)


class _Native:
    """One text graph, a conditioner, a denoiser, a VAE decoder that ends in RGB."""

    def __init__(self, runner: GraphRunner) -> None:
        self._runner = runner

    def _graph(self, kind: str, array: np.ndarray, scale: int = 1) -> str:
        """The graph for an array's size, which is so many times that of its latents."""
        rows, columns = (side // scale for side in array.shape[2:])
        return self._runner.manifest.graph_of(kind, (rows, columns))

    def conditions(self, prompts: Sequence[Ids]) -> list[Condition]:
        encoded = [self._runner.run("text_encoder", dict(ids)) for ids in prompts]
        return [(states, self._runner.run("conditioner", {"pooled_projections": pooled})[0]) for states, pooled in encoded]

    def velocity(self, latents: np.ndarray, condition: Condition, step: int) -> np.ndarray:
        states, modulations = condition
        inputs = {"hidden_states": latents, "encoder_hidden_states": states, "modulation": modulations[step]}
        return self._runner.run(self._graph("denoiser", latents), inputs)[0]

    def without(self, condition: Condition, blocks: Collection[int]) -> Condition:
        states, modulations = condition
        if (laid_out := self._runner.manifest.blocks) is None:
            complaint = Complaint("manifest.json", "does not say which modulations are which layer's")
            raise BundleError("The bundle cannot leave layers out.", [complaint], "build it again")
        closed = modulations.copy()
        closed[:, gates_of(msgspec.structs.asdict(laid_out), blocks)] = 0.0  # a block whose gates are 0 adds nothing
        return states, closed

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self._runner.run(self._graph("vae_decoder", latents), {"latent_sample": latents})[0]

    def encode(self, picture: np.ndarray) -> Law:
        scale = self._runner.manifest.picture.pixels_per_latent
        mean, *log_variance = self._runner.run(self._graph("vae_encoder", picture, scale), {"sample": picture})
        return mean, np.exp(0.5 * log_variance[0]) if log_variance else None


class _Optimum:
    """Diffusers' components as they are; this side does what ``StableDiffusion3Pipeline`` does between them."""

    def __init__(self, runner: GraphRunner) -> None:
        self._runner = runner

    def conditions(self, prompts: Sequence[Ids]) -> list[Condition]:
        clips = [
            [self._runner.run(graph, {"input_ids": ids[ENCODER_IDS[graph]]}) for ids in prompts] for graph in CLIPS
        ]  # of each graph, of each prompt: pooled states, then the hidden states of every layer
        return [self._condition(outs, t5) for *outs, t5 in zip(*clips, self._t5_states(prompts), strict=True)]

    def _condition(self, clips: Sequence[Sequence[np.ndarray]], t5: np.ndarray) -> Condition:
        states = np.concatenate([out[-2] for out in clips], axis=-1)  # hidden_states[-2], the state before the last layer
        padded = np.pad(states, ((0, 0), (0, 0), (0, self._runner.manifest.text.joint_dim - states.shape[-1])))
        return np.concatenate([padded, t5], axis=1), np.concatenate([out[0] for out in clips], axis=-1)

    def _t5_states(self, prompts: Sequence[Ids]) -> list[np.ndarray]:
        text = self._runner.manifest.text
        if text.t5 == "kept":
            return [self._runner.run("text_encoder_3", {"input_ids": ids["input_ids_3"]})[0] for ids in prompts]
        return [np.zeros((1, text.max_sequence_length, text.joint_dim), np.float32)] * len(prompts)

    def velocity(self, latents: np.ndarray, condition: Condition, step: int) -> np.ndarray:
        states, pooled = condition
        timestep = np.asarray([self._runner.manifest.sampling.timesteps[step]], np.float32)
        inputs = {
            "hidden_states": latents,
            "encoder_hidden_states": states,
            "pooled_projections": pooled,
            "timestep": timestep,
        }
        return self._runner.run("transformer", inputs)[0]

    def without(self, condition: Condition, blocks: Collection[int]) -> Condition:
        raise _no_layers_left_out(self._runner.manifest)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return _decoded(self._runner, "latent_sample", latents)

    def encode(self, picture: np.ndarray) -> Law:
        record = self._runner.manifest.picture
        encoded = self._runner.run("vae_encoder", {"sample": picture * 2 - 1})[0]
        channels, scaling = record.latent_channels, np.float32(record.scaling_factor)
        mean = (encoded[:, :channels] - np.float32(record.shift_factor)) * scaling
        if encoded.shape[1] == channels:
            return mean, None
        return mean, np.exp(0.5 * np.clip(encoded[:, channels:], *LOG_VARIANCE)) * scaling


class _Swift:
    """What Apple's Swift client does between its programs; velocities are those of the bundle's own schedule."""

    def __init__(self, runner: GraphRunner) -> None:
        self._runner = runner

    def conditions(self, prompts: Sequence[Ids]) -> list[Condition]:
        numbers = [{name: array.astype(np.float32) for name, array in ids.items()} for ids in prompts]
        clips = [[self._runner.run(graph, {"input_ids": ids[ENCODER_IDS[graph]]}) for ids in numbers] for graph in CLIPS]
        return [self._condition(outs, t5) for *outs, t5 in zip(*clips, self._t5_states(numbers), strict=True)]

    def _condition(self, clips: Sequence[Sequence[np.ndarray]], t5: np.ndarray | None) -> Condition:
        states = text_states([hidden for hidden, _ in clips], t5, self._runner.manifest.text.joint_dim)
        return states, np.concatenate([pooled for _, pooled in clips], axis=-1)

    def _t5_states(self, prompts: Sequence[Ids]) -> list[np.ndarray | None]:
        if self._runner.manifest.text.t5 != "kept":
            return [None] * len(prompts)
        tokens = [ids["input_ids_3"] for ids in prompts]
        return [self._runner.run("text_encoder_3", {"input_ids": one, "attention_mask": np.ones_like(one)})[0] for one in tokens]

    def velocity(self, latents: np.ndarray, condition: Condition, step: int) -> np.ndarray:
        manifest = self._runner.manifest
        client, own = manifest.client_schedule, manifest.sampling.timesteps[step]  # none in bundles of version 1
        timestep, scale = (client.timesteps[step], client.scales[step]) if client else (own, 1.0)
        return self._runner.run("transformer", transformer_inputs(latents, timestep, *condition))[0][:1] / np.float32(scale)

    def without(self, condition: Condition, blocks: Collection[int]) -> Condition:
        raise _no_layers_left_out(self._runner.manifest)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return _decoded(self._runner, "z", latents)

    def encode(self, picture: np.ndarray) -> Law:
        complaint = Complaint("vae_encoder", "the layout swift has none", "native or optimum", self._runner.manifest.layout)
        raise BundleError("The bundle cannot encode pictures.", [complaint])


def _no_layers_left_out(manifest: Manifest) -> BundleError:
    complaint = Complaint(
        "skip_guidance_layers", "only graphs of the layout native can leave layers out", "native", manifest.layout
    )
    return BundleError("The bundle cannot leave layers out.", [complaint])


def _decoded(runner: GraphRunner, port: str, latents: np.ndarray) -> np.ndarray:
    """By a VAE decoder as diffusers has it: scale and shift before it, [-1, 1] after it."""
    picture = runner.manifest.picture
    scaled = latents / np.float32(picture.scaling_factor) + np.float32(picture.shift_factor)
    return np.clip(runner.run("vae_decoder", {port: scaled})[0] / 2 + 0.5, 0, 1)
