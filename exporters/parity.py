"""An exported graph against diffusers, in dB.

The reference of each graph is made of diffusers' and transformers' own modules in fp32, never of the modules that were
traced. A graph is measured on several inputs, and its worst ratio counts: on what real prompts (and a picture) give it, and on
seeded draws at the scale that it sees in use. One draw alone says little: a conditioner's ratio varies by 17 dB between them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.errors import Complaint, ExportError
from exporters.graphs import VAE_SCALE, GraphOptions, GraphSpec, plan_graphs
from exporters.prompts import PROMPTS, token_ids
from exporters.ranges import Arrays
from exporters.reference import reference_component
from exporters.restructure.conditioning import modulation_layout
from exporters.streamed import stream
from exporters.student import Student
from exporters.swift import T5_TOKENS

Runner = Callable[[Arrays], list[np.ndarray]]
FP32 = "build with --precision fp32, or store what overflows in fp32 (a rule of a profile, e.g. vae/* -> fp32)"
OVERFLOWED = f"a value outgrew the type that the graph computes in, fp16 most likely: {FP32}"
DAMAGED = "the student itself computes NaN or infinity: its weights are damaged, or it is no model of this kind"
DRAWS = 2  # seeded draws beside what the prompts give


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
        """Of each prompt the text states, CLIP's and then T5's or one null token, and the pooled projections.

        They are made by the restructured encoders, streamed, whatever the layout: they are inputs, and no reference.
        """
        options = replace(self._options, layout="native", dynamic=False)
        spec = plan_graphs(self._student, options)[0]
        encode = stream(spec)
        return [tuple(made.numpy() for made in encode(*self._ids(prompt, spec))) for prompt in PROMPTS]  # type: ignore[misc]

    def _ids(self, prompt: str, spec: GraphSpec) -> list[Tensor]:
        return [torch.from_numpy(token_ids(self._student, name, self._options, prompt)) for name in spec.components]


@dataclass(frozen=True)
class Inputs:
    """What a graph is measured on, beside token ids: what prompts become, and a generator for each draw."""

    texts: Texts
    generators: tuple[np.random.Generator, ...]


def snr_db(reference: np.ndarray, got: np.ndarray, where: str = "output") -> float:
    """Signal-to-noise ratio ``10 log10(sum(reference^2) / sum((reference - got)^2))`` in dB, in fp64.

    Infinite where both are equal. A silent reference with a noisy result is minus infinity.

    Raises:
        ExportError: the shapes differ, or either holds NaN or infinity: no ratio can speak for such a result.

    >>> snr_db(np.ones(4), np.full(4, 1.01))
    40.0
    """
    complaints = []
    if reference.shape != got.shape:
        complaints.append(Complaint(where, "wrong shape", str(list(reference.shape)), str(list(got.shape))))
    remedy = ""
    for name, array, cure in (("reference", reference, DAMAGED), ("result", got, OVERFLOWED)):
        if bad := int(array.size - np.isfinite(array).sum()):
            complaints.append(Complaint(where, f"{bad} of {array.size} values of the {name} are NaN or infinite"))
            remedy = remedy or cure
    if complaints:
        raise ExportError("Two results cannot be compared.", complaints, remedy)
    wide, error = reference.astype(np.float64), reference.astype(np.float64) - got.astype(np.float64)
    signal, noise = float(np.sum(wide**2)), float(np.sum(error**2))
    if noise == 0:
        return float("inf")
    return float("-inf") if signal == 0 else round(10 * float(np.log10(signal / noise)), 2)


def psnr_db(reference: np.ndarray, got: np.ndarray, where: str = "picture") -> float:
    """Peak signal-to-noise ratio of pictures in [0, 1], in dB.

    Raises:
        ExportError: as :func:`snr_db`.
    """
    snr_db(reference, got, where)  # shapes and finiteness
    mean_square = float(np.mean((reference.astype(np.float64) - got.astype(np.float64)) ** 2))
    return float("inf") if mean_square == 0 else round(-10 * float(np.log10(mean_square)), 2)


def measure(cases: Sequence[Case], run: Runner, spec: GraphSpec, overflow: Callable[[Arrays], str] | None = None) -> float:
    """The worst ratio over all cases and outputs, in dB.

    Args:
        cases: what it is measured on.
        run: runs the graph.
        spec: the graph.
        overflow: of a graph that computes in fp16: finds where a result outgrew it, given a case's inputs.

    Raises:
        ExportError: as :func:`snr_db`, and where fp16 overflowed.
    """
    worst = float("inf")
    for case in cases:
        results = run(case.inputs)
        sound = all(np.isfinite(array).all() for array in case.outputs)
        if overflow is not None and sound and not all(np.isfinite(array).all() for array in results):
            complaint = Complaint(f"{spec.name}: {overflow(case.inputs)}", "outgrows fp16", "values of at most 65504")
            raise ExportError("fp16 overflows.", [complaint], FP32)
        for port, reference, got in zip(spec.outputs, case.outputs, results, strict=True):
            worst = min(worst, snr_db(reference, got, f"{spec.name}: {port.name}"))
    return worst


def worst_db(cases: Sequence[Case], run: Runner) -> float:
    """The worst ratio over all cases and outputs, in dB; minus infinity where a result overflows.

    Raises:
        ExportError: as :func:`snr_db`, of a reference that is not finite itself.
    """
    worst = float("inf")
    for case in cases:
        for reference, got in zip(case.outputs, run(case.inputs), strict=True):
            overflows = np.isfinite(reference).all() and not np.isfinite(got).all()
            worst = min(worst, float("-inf") if overflows else snr_db(reference, got))
    return worst


def onnx_runner(file: Path) -> Runner:
    """Run an ONNX file on onnxruntime's CPU provider, at its default optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)  # type: ignore[no-any-return]


def reference_cases(
    spec: GraphSpec, student: Student, options: GraphOptions, seed: int = 0, texts: Texts | None = None
) -> list[Case]:
    """Inputs and reference outputs for one graph; its components are loaded in fp32 and freed again.

    Args:
        spec: the graph.
        student: the student.
        options: the shape of its graphs.
        seed: of what is drawn.
        texts: what prompts become in the student, where that is known already.
    """
    generators = tuple(np.random.default_rng([seed, i]) for i in range(DRAWS))
    with torch.no_grad():
        models = {component: reference_component(student, component) for component in spec.components}
        inputs = Inputs(texts or Texts(student, options), generators)
        return _CASES[f"{options.layout} {spec.name}"](models, student, options, inputs)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _latents(student: Student, options: GraphOptions, rng: np.random.Generator, batch: int = 1) -> np.ndarray:
    return _normal(
        rng, batch, student.configs["transformer"]["in_channels"], options.height // VAE_SCALE, options.width // VAE_SCALE
    )


def _picture(options: GraphOptions) -> np.ndarray:
    """A smooth picture with edges, in [-1, 1]: ``[1, 3, height, width]``."""
    rows, columns = np.mgrid[0 : options.height, 0 : options.width].astype(np.float32)
    waves = [np.sin(rows / 7 + columns / 11), np.cos(columns / 5), np.sign(np.sin(rows / 13) * np.cos(columns / 17))]
    return 0.9 * np.stack(waves)[None].astype(np.float32)


def _pictured(models: Mapping[str, Any], options: GraphOptions) -> np.ndarray:
    """What the VAE's encoder makes of a picture, as a decoder takes it: ``[1, channels, height / 8, width / 8]``."""
    latents: np.ndarray = models["vae"].encode(torch.from_numpy(_picture(options))).latent_dist.mode().numpy()
    return latents


def _as_sampled(models: Mapping[str, Any], latents: np.ndarray) -> np.ndarray:
    """Latents as a sampler leaves them."""
    config = models["vae"].config
    sampled: np.ndarray = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
    return sampled.astype(np.float32)


def _native_text(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
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


def _native_conditioner(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    size = student.configs["transformer"]["pooled_projection_dim"]
    cases = []
    for pooled in [*(pooled for _, pooled in inputs.texts.encoded), *(_normal(rng, 1, size) for rng in inputs.generators)]:
        table = _modulations(models["transformer"], torch.tensor(options.timesteps), torch.from_numpy(pooled))
        cases.append(Case({"pooled_projections": pooled}, [table.numpy()]))
    return cases


def _text_cases(
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
        drawn = _normal(rng, 1, tokens, config["joint_attention_dim"]), _normal(rng, 1, config["pooled_projection_dim"])
        yield ends[(i + 1) % 2], rng, *drawn


def _native_denoiser(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    """The whole transformer of diffusers, with all its zero tokens, at the first and the last step."""
    transformer = models["transformer"]
    tokens = options.clip_tokens + (options.max_sequence_length if options.keep_t5 else 0)
    zeros = 0 if options.keep_t5 else options.max_sequence_length
    cases = []
    for timestep, rng, states, text in _text_cases(student, options, inputs, tokens):
        latents, pooled = _latents(student, options, rng), torch.from_numpy(text)
        modulation = _modulations(transformer, torch.tensor([timestep]), pooled)[0]
        full = np.pad(states, ((0, 0), (0, zeros), (0, 0)))
        velocity = transformer(torch.from_numpy(latents), torch.from_numpy(full), pooled, torch.tensor([timestep])).sample
        given = full if options.keep_t5 else full[:, : tokens + 1]
        ports = {"hidden_states": latents, "encoder_hidden_states": given, "modulation": modulation.numpy()}
        cases.append(Case(ports, [velocity.numpy()]))
    return cases


def _native_vae_decoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    vae = models["vae"]
    cases = []
    for latents in [_as_sampled(models, _pictured(models, options)), *(_latents(student, options, g) for g in inputs.generators)]:
        decoded = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
        cases.append(Case({"latent_sample": latents}, [(decoded / 2 + 0.5).clamp(0, 1).numpy()]))
    return cases


def _optimum_clip(component: str) -> Callable[..., list[Case]]:
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


def _optimum_t5(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    ids = np.concatenate([token_ids(student, "text_encoder_3", options, prompt) for prompt in PROMPTS])
    return [Case({"input_ids": ids}, [models["text_encoder_3"](torch.from_numpy(ids)).last_hidden_state.numpy()])]


def _optimum_transformer(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    """Batches of one and two, other text lengths and a picture that is not square: all of it is dynamic."""
    config, cases = student.configs["transformer"], []
    tokens, zeros = options.clip_tokens, options.max_sequence_length
    if options.keep_t5:
        tokens, zeros = tokens + zeros, 0
    for i, (timestep, rng, states, pooled) in enumerate(_text_cases(student, options, inputs, tokens)):
        batch = 1 + i % 2  # what is drawn, twice
        latents = _latents(student, options, rng, batch)
        ports = {
            "hidden_states": latents if batch == 1 else np.ascontiguousarray(latents[:, :, : config["patch_size"]]),
            "encoder_hidden_states": np.pad(states, ((0, 0), (0, zeros), (0, 0))) if batch == 1 else states.repeat(2, 0),
            "pooled_projections": pooled.repeat(batch, 0),
            "timestep": np.asarray([timestep] * batch, np.float32),
        }
        velocity = models["transformer"](*(torch.from_numpy(array) for array in ports.values())).sample
        cases.append(Case(ports, [velocity.numpy()]))
    return cases


def _optimum_vae_decoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    given = [_pictured(models, options), *(_latents(student, options, rng) for rng in inputs.generators)]
    return [Case({"latent_sample": z}, [models["vae"].decode(torch.from_numpy(z)).sample.numpy()]) for z in given]


def _optimum_vae_encoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    size = (1, 3, options.height, options.width)
    cases = []
    for picture in [_picture(options), *(rng.uniform(-1, 1, size).astype(np.float32) for rng in inputs.generators)]:
        moments = models["vae"].encode(torch.from_numpy(picture)).latent_dist.parameters
        cases.append(Case({"sample": picture}, [moments.numpy()]))
    return cases


def _swift_clip(component: str) -> Callable[..., list[Case]]:
    def cases(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
        made = []
        for prompt in PROMPTS:
            ids = token_ids(student, component, options, prompt)
            out = models[component](torch.from_numpy(ids), output_hidden_states=True)
            made.append(Case({"input_ids": ids.astype(np.float32)}, [out.hidden_states[-2].numpy(), out.text_embeds.numpy()]))
        return made

    return cases


def _swift_t5(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    """The mask must have no effect, because diffusers passes T5 none."""
    cases = []
    for prompt, rng in zip(PROMPTS, itertools.cycle(inputs.generators)):  # noqa: B905  (one is endless)
        ids = token_ids(student, "text_encoder_3", options, prompt)
        states = models["text_encoder_3"](torch.from_numpy(ids)).last_hidden_state.transpose(1, 2)[:, :, None]
        mask = rng.integers(0, 2, ids.shape).astype(np.float32)
        cases.append(Case({"input_ids": ids.astype(np.float32), "attention_mask": mask}, [states.numpy()]))
    return cases


def _swift_transformer(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    """The first of each pair with all its T5 or zero tokens; the second of each pair must not matter."""
    tokens, zeros = options.clip_tokens, 0 if options.keep_t5 else T5_TOKENS
    cases = []
    for timestep, rng, text, pool in _text_cases(student, options, inputs, tokens + T5_TOKENS - zeros):
        latents = _latents(student, options, rng, 2)
        states = np.pad(np.concatenate([text, _normal(rng, *text.shape)]), ((0, 0), (0, zeros), (0, 0)))
        pooled = np.concatenate([pool, _normal(rng, *pool.shape)])
        ports = {
            "latent_image_embeddings": latents,
            "timestep": np.array([timestep, 0], np.float32),
            "token_level_text_embeddings": np.ascontiguousarray(states.transpose(0, 2, 1)[:, :, None]),
            "pooled_text_embeddings": pooled[:, :, None, None],
        }
        first = (torch.from_numpy(array[:1]) for array in (latents, states, pooled))
        velocity = models["transformer"](*first, torch.tensor([timestep])).sample.numpy()
        cases.append(Case(ports, [np.concatenate([velocity, velocity])]))
    return cases


def _swift_vae_decoder(models: Mapping[str, Any], student: Student, options: GraphOptions, inputs: Inputs) -> list[Case]:
    cases = _optimum_vae_decoder(models, student, options, inputs)
    return [Case({"z": case.inputs["latent_sample"]}, case.outputs) for case in cases]


_CASES: dict[str, Callable[..., list[Case]]] = {
    "native text_encoder": _native_text,
    "native conditioner": _native_conditioner,
    "native denoiser": _native_denoiser,
    "native vae_decoder": _native_vae_decoder,
    "optimum text_encoder": _optimum_clip("text_encoder"),
    "optimum text_encoder_2": _optimum_clip("text_encoder_2"),
    "optimum text_encoder_3": _optimum_t5,
    "optimum transformer": _optimum_transformer,
    "optimum vae_decoder": _optimum_vae_decoder,
    "optimum vae_encoder": _optimum_vae_encoder,
    "swift text_encoder": _swift_clip("text_encoder"),
    "swift text_encoder_2": _swift_clip("text_encoder_2"),
    "swift text_encoder_3": _swift_t5,
    "swift transformer": _swift_transformer,
    "swift vae_decoder": _swift_vae_decoder,
}
