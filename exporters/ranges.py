"""How large a student's values grow, measured by drawing; what comes near fp16's limit computes in fp32, in every format.

A VAE's residual stream, T5's, or a student's own habits reach beyond 65504, and which of them do is a fact about the weights. A
:class:`Rehearsal` draws one picture of a prompt, at the first step and at the last, graph by graph, and lets the VAE make a few
others; whoever makes a graph brings
what runs it and looks at the values that pass by: :mod:`exporters.half` the parts of the traced module (ONNX),
:mod:`exporters.coreml.rehearsal` the operations of a drafted program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from exporters.choices import ENCODER_IDS, PROMPTS
from exporters.layouts.prompts import token_ids
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import VAE_SCALE, GraphOptions
from exporters.layouts.swift_client import text_states, transformer_inputs
from exporters.scales import Size, resized, unsized_graph
from exporters.student.student import Student

LIMIT = 65504 / 4
"""A quarter of fp16's range: other prompts and seeds reach further than those that are measured."""
T = TypeVar("T")
Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
"""Runs the graph at hand: from what is known, by name, to what the graph makes, by name."""
Form = Callable[[np.ndarray], np.ndarray]
"""Latents of a sampler, or a picture in [0, 1], as a VAE's graph takes them."""


def growing_shares(losing: Sequence[T]) -> Iterator[Sequence[T]]:
    """The first sixteenth of what loses, the first quarter, half, and all: to be computed in fp32 until a graph is right.

    >>> [len(share) for share in growing_shares(range(20))]
    [2, 5, 10, 20]
    """
    for share in (16, 4, 2, 1):
        yield losing[: -(-len(losing) // share)]


@dataclass
class Rehearsal:
    """One picture, drawn graph by graph, by the graphs of the layout ``native``.

    Attributes:
        ids: token ids of a prompt, by input.
        sigmas: of the steps, and the last 0.
        latent_shape: ``[1, channels, height / 8, width / 8]``.
        values: what the graphs so far have made, by name.
    """

    ids: Arrays
    sigmas: tuple[float, ...]
    latent_shape: tuple[int, ...]
    values: Arrays = field(default_factory=dict)

    def play(self, graph: str, run: Run) -> None:
        """Let the graph make what it makes of what is known, which becomes known to the graphs after it."""
        kind, size = unsized_graph(graph)
        if size is not None:
            self._play_sized(run, kind, size)
        elif graph == "text_encoder":
            self.values |= run(self.ids)
        elif graph == "denoiser":
            self.values["latent_sample"] = self._denoised(run)
        elif graph == "vae_decoder":
            self.values["sample"] = self._decoded(run, "latent_sample", self.values["latent_sample"], lambda latents: latents)
        elif graph == "vae_encoder":
            self._encoded(run, self.values["sample"], lambda picture: picture)
        else:
            self.values |= run(self.values)

    def _play_sized(self, run: Run, graph: str, size: Size) -> None:
        """A graph of another size: the first step, of noise; a VAE's, of what was drawn, enlarged or made smaller."""
        if graph == "denoiser":
            self._velocity(run, np.random.default_rng(0).standard_normal((*self.latent_shape[:2], *size), np.float32), 0)
        elif graph == "vae_decoder":
            latents = resized(self.values["latent_sample"], size, "nearest")
            self._decoded(run, "latent_sample", latents, lambda latents: latents)
        else:
            rows, columns = (VAE_SCALE * side for side in size)
            self._encoded(run, resized(self.values["sample"], (rows, columns), "nearest"), lambda picture: picture)

    def _velocity(self, run: Run, latents: np.ndarray, step: int) -> np.ndarray:
        return run({**self.values, "hidden_states": latents, "modulation": self.values["modulations"][step]})["out_sample"]

    def _denoised(self, run: Run) -> np.ndarray:
        """The first step from noise; then the last, from what the first predicts, at the last step's noise."""
        noise = np.random.default_rng(0).standard_normal(self.latent_shape, np.float32)
        latents = estimate = noise
        for step in dict.fromkeys((0, len(self.sigmas) - 2)):
            sigma = np.float32(self.sigmas[step])
            latents = noise if step == 0 else ((1 - sigma) * estimate + sigma * noise).astype(np.float32)
            estimate = (latents - sigma * self._velocity(run, latents, step)).astype(np.float32)
        return estimate

    def _decoded(self, run: Run, port: str, latents: np.ndarray, taken: Form) -> np.ndarray:
        """The drawn picture, as the decoder gives it.

        A VAE's values hang on the picture: those of latents that are all 0, or noise, are ten times as large as those of most
        pictures, and nearly as large as the largest (1.3 times as large of the built-in student's, of which this was seen).
        """
        for other in (np.zeros_like(latents), np.random.default_rng(1).standard_normal(latents.shape, np.float32)):
            run({port: taken(other)})
        [decoded] = run({port: taken(latents)}).values()
        return decoded

    def _encoded(self, run: Run, picture: np.ndarray, taken: Form) -> None:
        """Encode the drawn picture in [0, 1], and others for the reason that :meth:`_decoded` has: a black one, and noise."""
        for other in (np.zeros_like(picture), np.random.default_rng(2).random(picture.shape, np.float32), picture):
            run({"sample": taken(other)})


@dataclass
class SeparateRehearsal(Rehearsal):
    """The same, where each text encoder and the whole transformer are graphs of their own.

    Attributes:
        timesteps: what the transformer is told at each step.
        joint_dim: channels of the transformer's text states.
        null_tokens: zero tokens that stand in T5's place.
        scaling: the VAE's scaling and shift: ``z = latents / scaling + shift``.
        shift: the VAE's shift.
    """

    timesteps: tuple[float, ...] = ()
    joint_dim: int = 0
    null_tokens: int = 0
    scaling: float = 1.0
    shift: float = 0.0

    def _unscaled(self, latents: np.ndarray) -> np.ndarray:
        return (latents / np.float32(self.scaling) + np.float32(self.shift)).astype(np.float32)


@dataclass
class SwiftRehearsal(SeparateRehearsal):
    """By the graphs of the layout ``swift`` (:mod:`exporters.layouts.swift_client`).

    Attributes:
        scales: what the transformer scales each step's velocity by.
    """

    scales: tuple[float, ...] = ()

    def play(self, graph: str, run: Run) -> None:
        """As :meth:`Rehearsal.play`."""
        if graph in ENCODER_IDS:
            ids = self.ids[ENCODER_IDS[graph]].astype(np.float32)
            outputs = run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
            self.values |= {f"{graph}.{name}": array for name, array in outputs.items()}
        elif graph == "transformer":
            self.values["latents"] = self._denoised(run)
        else:
            self._decoded(run, "z", self.values["latents"], self._unscaled)

    def _velocity(self, run: Run, latents: np.ndarray, step: int) -> np.ndarray:
        values = self.values
        clips = [values[f"{name}.hidden_embeds"] for name in ("text_encoder", "text_encoder_2")]
        pooled = [values[f"{name}.pooled_outputs"] for name in ("text_encoder", "text_encoder_2")]
        text = text_states(clips, values.get("text_encoder_3.encoder_hidden_states"), self.joint_dim)
        given = transformer_inputs(latents, self.timesteps[step], text, np.concatenate(pooled, axis=-1))
        return run(given)["denoiser_output"][:1] / np.float32(self.scales[step])


@dataclass
class OptimumRehearsal(SeparateRehearsal):
    """By the graphs of the layout ``optimum``."""

    def play(self, graph: str, run: Run) -> None:
        """As :meth:`Rehearsal.play`."""
        if graph in ENCODER_IDS:
            outputs = list(run({"input_ids": self.ids[ENCODER_IDS[graph]]}).values())
            self.values[f"{graph}.pooled"], self.values[f"{graph}.states"] = outputs[0], outputs[-2 if len(outputs) > 1 else 0]
        elif graph == "transformer":
            self.values["latents"] = self._denoised(run)
        elif graph == "vae_decoder":
            decoded = self._decoded(run, "latent_sample", self.values["latents"], self._unscaled)
            self.values["picture"] = (decoded / 2 + 0.5).clip(0, 1)
        else:
            self._encoded(run, self.values["picture"], lambda picture: picture * 2 - 1)

    def _velocity(self, run: Run, latents: np.ndarray, step: int) -> np.ndarray:
        values = self.values
        clip = np.concatenate([values[f"{name}.states"] for name in ("text_encoder", "text_encoder_2")], axis=-1)
        clip = np.pad(clip, ((0, 0), (0, 0), (0, self.joint_dim - clip.shape[-1])))
        t5 = values.get("text_encoder_3.states", np.zeros((1, self.null_tokens, self.joint_dim), np.float32))
        given = {
            "hidden_states": latents,
            "encoder_hidden_states": np.concatenate([clip, t5], axis=1),
            "pooled_projections": np.concatenate(
                [values[f"{name}.pooled"] for name in ("text_encoder", "text_encoder_2")], axis=-1
            ),
            "timestep": np.asarray([self.timesteps[step]], np.float32),
        }
        return run(given)["out_sample"]


def rehearsal_of(student: Student, options: GraphOptions, sampling: Sampling) -> Rehearsal:
    """A picture of one of the project's prompts, to be drawn while graphs are made."""
    config, vae = student.configs["transformer"], student.configs["vae"]
    components = [name for name in ENCODER_IDS if name != "text_encoder_3" or options.keep_t5]
    ids = {ENCODER_IDS[name]: token_ids(student, name, options, PROMPTS[0]) for name in components}
    latent = (1, config["in_channels"], options.height // VAE_SCALE, options.width // VAE_SCALE)
    if options.layout == "native":
        return Rehearsal(ids, sampling.sigmas, latent)
    kind: type[SeparateRehearsal] = SwiftRehearsal if options.layout == "swift" else OptimumRehearsal
    more: dict[str, Any] = {
        "timesteps": sampling.timesteps,
        "joint_dim": config["joint_attention_dim"],
        "null_tokens": options.max_sequence_length,
        "scaling": vae["scaling_factor"],
        "shift": vae["shift_factor"] or 0.0,
    }
    if options.client is not None:
        more |= {"timesteps": options.client.timesteps, "scales": options.client.scales}
    return kind(ids, sampling.sigmas, latent, **more)
