"""How large a program's values grow, measured by running it; what comes near fp16's limit computes in fp32.

A VAE's residual stream, T5's, or a student's own habits reach beyond 65504, and which of them do is a fact about the weights.
The programs of a draft (plain fp16 weights) are run by the evaluator, in fp32 throughout, on a prompt at the first step and at
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

    def wide_nodes(self, graph: str, model: ir.Model) -> set[ir.Node]:
        """The nodes of a model that cannot compute in fp16; what it makes becomes known to the graphs after it."""
        with tempfile.TemporaryDirectory() as folder:
            programs = to_programs(model, ProgramOptions(uniform("fp16")))
            stages = [write_package(made, Path(folder) / f"{i}.mlpackage") for i, made in enumerate(programs)]
            audit = Audit()
            self._draw(graph, [open_package(path) for path in stages], audit)
        return _beyond(programs, audit)

    def run(self, graph: str, packages: Sequence[Path]) -> None:
        """Let a finished graph make what the graphs after it need."""
        self._draw(graph, [open_package(path) for path in packages], None)

    def _draw(self, graph: str, stages: list[Program], audit: Audit | None) -> None:
        if graph == "text_encoder":
            self.known |= run_chain(stages, self.ids, "fp32", audit)
        elif graph == "conditioner":
            self.known |= run_chain(stages, self.known, "fp32", audit)
        elif graph == "denoiser":
            self.known["latent_sample"] = self._denoised(stages, audit)
        else:
            run_chain(stages, self.known, "fp32", audit)

    def _denoised(self, stages: list[Program], audit: Audit | None) -> np.ndarray:
        """The first step from noise; then the last, from what the first foretells, at the last step's noise."""
        noise = np.random.default_rng(0).standard_normal(self.latent_shape, np.float32)
        latents = estimate = noise
        for step in dict.fromkeys((0, len(self.sigmas) - 2)):
            sigma = np.float32(self.sigmas[step])
            latents = noise if step == 0 else ((1 - sigma) * estimate + sigma * noise).astype(np.float32)
            given = {**self.known, "hidden_states": latents, "modulation": self.known["modulations"][step]}
            velocity = run_chain(stages, given, "fp32", audit)["out_sample"]
            estimate = (latents - sigma * velocity).astype(np.float32)
        return estimate


def _beyond(programs: Iterable[StageProgram], audit: Audit) -> set[ir.Node]:
    origins = {name: node for made in programs for name, node in made.origins.items()}
    large = {record.name for record in audit.records if record.name in origins and not record.amax <= LIMIT}  # NaN is large
    results = {node: name for name, node in origins.items()}  # the last of each node's values is its result
    makers = {origins[name] for name in large}
    readers = {reader for node in makers if results[node] in large for value in node.outputs for reader in value.consumers()}
    return makers | readers
