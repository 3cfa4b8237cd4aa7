"""One graph of a student as Core ML packages: traced, measured, lowered, streamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
import torch

from exporters.coreml.package import write_package
from exporters.coreml.program import ProgramOptions, ProgramPort, StageProgram, to_programs
from exporters.coreml.rehearsal import nodes_by_loss, wide_nodes
from exporters.layouts.spec import GraphSpec
from exporters.onnx.passes import simplify
from exporters.onnx.quantize import Kept
from exporters.onnx.trace import trace
from exporters.ranges import Rehearsal, growing_shares
from exporters.restructure.denoiser import null_tokens_as_bias
from exporters.restructure.vae import keep_group_norms
from exporters.scales import unsized_graph

GRAPHS = {
    "text_encoder": "token ids to text states",
    "text_encoder_2": "token ids to text states",
    "text_encoder_3": "token ids to text states",
    "conditioner": "pooled text to the modulations of every step",
    "denoiser": "one step's velocity",
    "transformer": "one step's velocity",
    "vae_decoder": "latents to RGB",
    "vae_encoder": "RGB to the law of its latents",
}
DESCRIPTIONS = {
    "input_ids": "CLIP-L token ids, padded to the full length",
    "input_ids_2": "CLIP-G token ids, padded to the full length",
    "input_ids_3": "T5 token ids, padded to the full length",
    "encoder_hidden_states": "states of all text tokens",
    "pooled_projections": "pooled text embeddings of both CLIP encoders",
    "modulations": "AdaLN modulations [steps, rows, channels]: pass one step's rows to the denoiser",
    "modulation": "AdaLN modulations of this step [rows, channels]",
    "hidden_states": "noisy latents",
    "out_sample": "velocity: latents move by it times the step in sigma",
    "latent_sample": "latents as the sampler leaves them",
    "latent_mean": "latents of the picture as a sampler has them: their mean",
    "latent_log_variance": "their log-variance: a draw is the mean + exp(half of it) times noise",
    "sample": "RGB in [0, 1]",
}
SWIFT_DESCRIPTIONS = {
    "input_ids": "token ids as numbers, padded to the full length",
    "attention_mask": "has no effect: diffusers gives T5 no mask",
    "hidden_embeds": "states before the last layer",
    "pooled_outputs": "projected state of the end-of-text token",
    "encoder_hidden_states": "T5's states [1, channels, 1, tokens]",
    "latent_image_embeddings": "noisy latents, twice",
    "timestep": "sigma times 1000, twice",
    "token_level_text_embeddings": "states of all text tokens, prompt and negative prompt",
    "pooled_text_embeddings": "pooled text embeddings, prompt and negative prompt",
    "denoiser_output": "velocity of prompt and negative prompt; the prompt's twice where the bundle is not guided",
    "z": "latents divided by the VAE's scaling factor, plus its shift",
    "image": "RGB in [-1, 1]",
}


@dataclass(frozen=True)
class WrittenStage:
    """One package that was written: its path in the bundle and its ports."""

    path: str
    inputs: tuple[ProgramPort, ...]
    outputs: tuple[ProgramPort, ...]


class Check(Protocol):
    """What written packages must pass."""

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Something that the graph is measured on."""

    def passes(self, packages: Sequence[Path]) -> bool:
        """Whether they compute what they must."""


@dataclass(frozen=True)
class WrittenGraph:
    """A graph's packages.

    Attributes:
        stages: in the order in which they run.
        parameters: how many of the student's numbers they stand for.
        stored: bytes of each weight as it is stored, by what programs of several sizes have in common.
        kept: weights that keep their floating-point form though a rule gave them another.
        wide: operators that compute in fp32 in programs that compute in fp16.
    """

    stages: tuple[WrittenStage, ...]
    parameters: int
    stored: Mapping[str, int]
    kept: tuple[Kept, ...]
    wide: tuple[str, ...]

    @property
    def weight_bytes(self) -> int:
        """Of all weights as they are stored."""
        return sum(self.stored.values())


def draft(spec: GraphSpec) -> ir.Model:
    """Trace a graph as programs are made of it; weights are not read."""
    return simplify(trace(spec, torch.float32, _prepare))


def _prepare(module: torch.nn.Module) -> None:
    keep_group_norms(module)
    null_tokens_as_bias(module)


def draft_weights(model: ir.Model, options: ProgramOptions) -> dict[str, int]:
    """What a draft's weights will take, in bytes, by what programs of several sizes have in common."""
    return _stored(to_programs(model, options))


def _stored(programs: Sequence[StageProgram]) -> dict[str, int]:
    return {f"{number} {name}": size for number, program in enumerate(programs) for name, size in program.stored.items()}


def stage_paths(spec: GraphSpec, stages: int) -> list[str]:
    """``denoiser.mlpackage``, or ``denoiser_1.mlpackage``, ``denoiser_2.mlpackage``, ..."""
    stem = Path(spec.path).stem
    return [f"{stem}.mlpackage"] if stages == 1 else [f"{stem}_{i + 1}.mlpackage" for i in range(stages)]


def write_graph(
    spec: GraphSpec,
    model: ir.Model,
    options: ProgramOptions,
    rehearsal: Rehearsal | None,
    folder: Path,
    progress: Callable[[int], None] | None = None,
    check: Check | None = None,
) -> WrittenGraph:
    """Write a graph's packages.

    Args:
        spec: the graph.
        model: its draft.
        options: what the target wants.
        rehearsal: measures what cannot compute in fp16; none for fp32 programs.
        folder: the bundle's folder.
        progress: called with the number of bytes just written.
        check: whether what was written is right; where it is not, more of it computes in fp32, what loses most first.

    Raises:
        SchemeError: weights that cannot be stored.
        ExportError: an operator has no form, or the graph cannot be cut.
    """
    wide = set() if rehearsal is None else wide_nodes(rehearsal, spec.name, model, options)
    programs, stages = _write_stages(spec, model, options, wide, folder, progress)
    packages = [folder / stage.path for stage in stages]
    if check is not None and options.compute == "fp16" and not check.passes(packages):
        losing = [node for node in nodes_by_loss(programs, packages, check.inputs) if node not in wide]
        for more in growing_shares(losing):
            for package in packages:
                shutil.rmtree(package)
            programs, stages = _write_stages(spec, model, options, wide | {*more}, folder, None)
            if check.passes(packages):
                break
    return WrittenGraph(
        tuple(stages),
        sum(program.constants.parameters for program in programs),
        _stored(programs),
        tuple(kept for program in programs for kept in program.constants.kept),
        tuple(name for program in programs for name in program.wide),
    )


def _write_stages(
    spec: GraphSpec,
    model: ir.Model,
    options: ProgramOptions,
    wide: Collection[ir.Node],
    folder: Path,
    progress: Callable[[int], None] | None,
) -> tuple[list[StageProgram], list[WrittenStage]]:
    programs = to_programs(model, options, wide)
    stages = []
    ports = {port.name for port in (*spec.inputs, *spec.outputs)}
    descriptions = SWIFT_DESCRIPTIONS if ports <= SWIFT_DESCRIPTIONS.keys() else DESCRIPTIONS
    between = {port.name for program in programs for port in (*program.inputs, *program.outputs)} - descriptions.keys()
    told = {**descriptions, **dict.fromkeys(between, f"handed from one program of the {spec.name} to the next")}
    does = GRAPHS[unsized_graph(spec.name)[0]]
    for number, (program, path) in enumerate(zip(programs, stage_paths(spec, len(programs)), strict=True), 1):
        part = f", program {number} of {len(programs)}" if len(programs) > 1 else ""
        about = replace(options.about, description=f"{spec.name}{part}: {does}{options.about.description}")
        write_package(program, folder / path, told, progress, about)
        stages.append(WrittenStage(path, program.inputs, program.outputs))
    return programs, stages
