"""How large a program's values grow, measured by running it; what comes near fp16's limit computes in fp32.

A VAE's residual stream, T5's, or a student's own habits reach beyond 65504, and which of them do is a fact about the weights.
The programs of a draft (matrices in fp16, everything else in fp32) are run by the evaluator on a prompt, at the first step and at
the last; every node that reads or makes a value beyond a quarter of fp16's range is marked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporters.coreml.chain import run_chain
from exporters.coreml.evaluate import Audit, Program, open_package
from exporters.coreml.package import write_package
from exporters.coreml.program import ProgramOptions, StageProgram, to_programs
from exporters.swift import ENCODER_IDS, text_states, transformer_inputs
from quantization.profile import uniform

LIMIT = 65504 / 4  # other prompts and seeds reach further than the one that is measured
Arrays = dict[str, np.ndarray]


@dataclass
class Rehearsal:
    """One picture, drawn graph by graph as its programs are made.

    Attributes:
        ids: token ids of a prompt, by input.
        sigmas: of the steps, and the last 0.
        latent_shape: ``[1, channels, height / 8, width / 8]``.
        known: what the graphs so far have made, by name.
    """

    ids: Arrays
    sigmas: tuple[float, ...]
    latent_shape: tuple[int, ...]
    known: Arrays = field(default_factory=dict)

    def wide_nodes(self, graph: str, model: ir.Model, options: ProgramOptions) -> set[ir.Node]:
        """The nodes of a model that cannot compute in fp16; what it makes becomes known to the graphs after it."""
        plain = ProgramOptions(uniform("fp16"), "fp32", options.target, attention=options.attention)
        with tempfile.TemporaryDirectory() as folder:
            programs = to_programs(model, plain)
            stages = [write_package(made, Path(folder) / f"{i}.mlpackage") for i, made in enumerate(programs)]
            audit = Audit()
            self._draw(graph, [open_package(path) for path in stages], audit)
        return _beyond(programs, audit)

    def run(self, graph: str, packages: Sequence[Path]) -> None:
        """Let a finished graph make what the graphs after it need."""
        self._draw(graph, [open_package(path) for path in packages], None)

    def _draw(self, graph: str, stages: list[Program], audit: Audit | None) -> None:
        """Let a graph of the layout ``native`` make what it makes."""
        if graph == "text_encoder":
            self.known |= run_chain(stages, self.ids, "fp32", audit)
        elif graph == "conditioner":
            self.known |= run_chain(stages, self.known, "fp32", audit)
        elif graph == "denoiser":
            self.known["latent_sample"] = self._denoised(stages, audit)
        else:
            run_chain(stages, self.known, "fp32", audit)

    def _velocity(self, stages: list[Program], latents: np.ndarray, step: int, audit: Audit | None) -> np.ndarray:
        given = {**self.known, "hidden_states": latents, "modulation": self.known["modulations"][step]}
        return run_chain(stages, given, "fp32", audit)["out_sample"]

    def _denoised(self, stages: list[Program], audit: Audit | None) -> np.ndarray:
        """The first step from noise; then the last, from what the first foretells, at the last step's noise."""
        noise = np.random.default_rng(0).standard_normal(self.latent_shape, np.float32)
        latents = estimate = noise
        for step in dict.fromkeys((0, len(self.sigmas) - 2)):
            sigma = np.float32(self.sigmas[step])
            latents = noise if step == 0 else ((1 - sigma) * estimate + sigma * noise).astype(np.float32)
            estimate = (latents - sigma * self._velocity(stages, latents, step, audit)).astype(np.float32)
        return estimate


@dataclass
class SwiftRehearsal(Rehearsal):
    """The same, by the graphs of the layout ``swift`` (:mod:`exporters.swift`).

    Attributes:
        timesteps: what the transformer is told at each step.
        joint_dim: channels of the transformer's text states.
        scaling: the VAE's scaling and shift: ``z = latents / scaling + shift``.
        shift: the VAE's shift.
    """

    timesteps: tuple[float, ...] = ()
    joint_dim: int = 0
    scaling: float = 1.0
    shift: float = 0.0

    def _draw(self, graph: str, stages: list[Program], audit: Audit | None) -> None:
        if graph in ENCODER_IDS:
            ids = self.ids[ENCODER_IDS[graph]].astype(np.float32)
            given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            made = run_chain(stages, given, "fp32", audit)
            self.known |= {f"{graph}.{name}": array for name, array in made.items()}
        elif graph == "transformer":
            self.known["latents"] = self._denoised(stages, audit)
        else:
            z = self.known["latents"] / np.float32(self.scaling) + np.float32(self.shift)
            run_chain(stages, {"z": z}, "fp32", audit)

    def _velocity(self, stages: list[Program], latents: np.ndarray, step: int, audit: Audit | None) -> np.ndarray:
        made = {name: array for name, array in self.known.items() if name != "latents"}
        clips = [(made[f"{name}.hidden_embeds"], made[f"{name}.pooled_outputs"]) for name in ("text_encoder", "text_encoder_2")]
        text = text_states([states for states, _ in clips], made.get("text_encoder_3.encoder_hidden_states"), self.joint_dim)
        given = transformer_inputs(latents, self.timesteps[step], text, np.concatenate([pooled for _, pooled in clips], axis=-1))
        return run_chain(stages, given, "fp32", audit)["denoiser_output"][:1]


def _beyond(programs: Iterable[StageProgram], audit: Audit) -> set[ir.Node]:
    """The nodes that make what is too large, and those that read it."""
    programs = list(programs)
    origins = {name: node for made in programs for name, node in made.origins.items()}
    readers = {name: nodes for made in programs for name, nodes in made.readers.items()}
    large = [record.name for record in audit.records if record.name in origins and not record.amax <= LIMIT]  # NaN is large
    return {origins[name] for name in large} | {node for name in large for node in readers.get(name, ())}
