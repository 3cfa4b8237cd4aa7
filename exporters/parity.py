"""An exported graph against diffusers, in dB.

The reference of each graph is made of diffusers' and transformers' own modules in fp32, never of the modules that were
traced. Inputs are drawn from a seed at the scale that the graph sees in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.errors import Complaint, ExportError
from exporters.graphs import VAE_SCALE, GraphOptions, GraphSpec
from exporters.reference import load_tokenizer, reference_component
from exporters.restructure.conditioning import modulation_layout
from exporters.student import Student
from exporters.swift import T5_TOKENS

Arrays = dict[str, np.ndarray]
Runner = Callable[[Arrays], list[np.ndarray]]
PROMPTS = ("a red circle left of a blue square on a white background", "two green triangles on a black background")


@dataclass(frozen=True)
class Case:
    """Inputs of a graph and what diffusers makes of them."""

    inputs: Arrays
    outputs: list[np.ndarray]


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
    for name, array in (("reference", reference), ("result", got)):
        if bad := int(array.size - np.isfinite(array).sum()):
            complaints.append(Complaint(where, f"{bad} of {array.size} values of the {name} are NaN or infinite"))
    if complaints:
        raise ExportError("Two results cannot be compared.", complaints)
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


def measure(cases: list[Case], run: Runner, spec: GraphSpec) -> float:
    """The worst ratio over all cases and outputs, in dB."""
    worst = float("inf")
    for case in cases:
        for port, reference, got in zip(spec.outputs, case.outputs, run(case.inputs), strict=True):
            worst = min(worst, snr_db(reference, got, f"{spec.name}: {port.name}"))
    return worst


def onnx_runner(file: Path) -> Runner:
    """Run an ONNX file on onnxruntime's CPU provider, at its default optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)  # type: ignore[no-any-return]


def reference_cases(spec: GraphSpec, student: Student, options: GraphOptions, seed: int = 0) -> list[Case]:
    """Inputs and reference outputs for one graph; its components are loaded in fp32 and freed again."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        models = {component: reference_component(student, component) for component in spec.components}
        return _CASES[f"{options.layout} {spec.name}"](models, student, options, rng)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _latents(student: Student, options: GraphOptions, rng: np.random.Generator, batch: int = 1) -> np.ndarray:
    return _normal(
        rng, batch, student.configs["transformer"]["in_channels"], options.height // VAE_SCALE, options.width // VAE_SCALE
    )


def _token_ids(student: Student, component: str, options: GraphOptions, prompt: str) -> np.ndarray:
    length = options.max_sequence_length if component == "text_encoder_3" else options.clip_tokens
    encoded = load_tokenizer(student, component)(prompt, padding="max_length", max_length=length, truncation=True)
    return np.asarray([encoded["input_ids"]], np.int64)


def _native_text(models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator) -> list[Case]:
    cases = []
    joint = student.configs["transformer"]["joint_attention_dim"]
    for prompt in PROMPTS:
        ids = {name: _token_ids(student, name, options, prompt) for name in models}
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
        inputs = {name: ids[component] for name, component in zip(names, ids, strict=False)}
        cases.append(Case(inputs, [torch.cat([states, t5], dim=1).numpy(), pooled.numpy()]))
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


def _native_conditioner(
    models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator
) -> list[Case]:
    pooled = _normal(rng, 1, student.configs["transformer"]["pooled_projection_dim"])
    table = _modulations(models["transformer"], torch.tensor(options.timesteps), torch.from_numpy(pooled))
    return [Case({"pooled_projections": pooled}, [table.numpy()])]


def _native_denoiser(models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator) -> list[Case]:
    """The whole transformer of diffusers, with all its zero tokens, at the first and the last step."""
    transformer, config = models["transformer"], student.configs["transformer"]
    tokens = options.clip_tokens + (options.max_sequence_length if options.keep_t5 else 0)
    cases = []
    for timestep in {options.timesteps[0], options.timesteps[-1]}:
        latents = _latents(student, options, rng)
        states = _normal(rng, 1, tokens, config["joint_attention_dim"])
        pooled = torch.from_numpy(_normal(rng, 1, config["pooled_projection_dim"]))
        modulation = _modulations(transformer, torch.tensor([timestep]), pooled)[0]
        zeros = 0 if options.keep_t5 else options.max_sequence_length
        full = np.pad(states, ((0, 0), (0, zeros), (0, 0)))
        velocity = transformer(torch.from_numpy(latents), torch.from_numpy(full), pooled, torch.tensor([timestep])).sample
        given = states if options.keep_t5 else full[:, : tokens + 1]
        inputs = {"hidden_states": latents, "encoder_hidden_states": given, "modulation": modulation.numpy()}
        cases.append(Case(inputs, [velocity.numpy()]))
    return cases


def _native_vae_decoder(
    models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator
) -> list[Case]:
    vae = models["vae"]
    latents = _latents(student, options, rng)
    decoded = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
    return [Case({"latent_sample": latents}, [(decoded / 2 + 0.5).clamp(0, 1).numpy()])]


def _optimum_clip(component: str) -> Callable[..., list[Case]]:
    def cases(models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator) -> list[Case]:
        ids = np.concatenate([_token_ids(student, component, options, prompt) for prompt in PROMPTS])
        out = models[component](torch.from_numpy(ids), output_hidden_states=True)
        return [
            Case(
                {"input_ids": ids},
                [out.text_embeds.numpy(), out.last_hidden_state.numpy(), *(s.numpy() for s in out.hidden_states)],
            )
        ]

    return cases


def _optimum_t5(models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator) -> list[Case]:
    ids = np.concatenate([_token_ids(student, "text_encoder_3", options, prompt) for prompt in PROMPTS])
    return [Case({"input_ids": ids}, [models["text_encoder_3"](torch.from_numpy(ids)).last_hidden_state.numpy()])]


def _optimum_transformer(
    models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator
) -> list[Case]:
    """Batches of one and two, another text length and a picture that is not square: all of it is dynamic."""
    config, cases = student.configs["transformer"], []
    for batch, tokens in ((1, options.clip_tokens + options.max_sequence_length), (2, options.clip_tokens)):
        latents = _latents(student, options, rng, batch)
        inputs = {
            "hidden_states": latents if batch == 1 else np.ascontiguousarray(latents[:, :, : config["patch_size"]]),
            "encoder_hidden_states": _normal(rng, batch, tokens, config["joint_attention_dim"]),
            "pooled_projections": _normal(rng, batch, config["pooled_projection_dim"]),
            "timestep": np.asarray(options.timesteps[:1] * batch, np.float32),
        }
        velocity = models["transformer"](*(torch.from_numpy(array) for array in inputs.values())).sample
        cases.append(Case(inputs, [velocity.numpy()]))
    return cases


def _optimum_vae_decoder(
    models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator
) -> list[Case]:
    latents = _latents(student, options, rng)
    return [Case({"latent_sample": latents}, [models["vae"].decode(torch.from_numpy(latents)).sample.numpy()])]


def _optimum_vae_encoder(
    models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator
) -> list[Case]:
    picture = rng.uniform(-1, 1, (1, 3, options.height, options.width)).astype(np.float32)
    moments = models["vae"].encode(torch.from_numpy(picture)).latent_dist.parameters
    return [Case({"sample": picture}, [moments.numpy()])]


def _swift_clip(component: str) -> Callable[..., list[Case]]:
    def cases(models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator) -> list[Case]:
        made = []
        for prompt in PROMPTS:
            ids = _token_ids(student, component, options, prompt)
            out = models[component](torch.from_numpy(ids), output_hidden_states=True)
            made.append(Case({"input_ids": ids.astype(np.float32)}, [out.hidden_states[-2].numpy(), out.text_embeds.numpy()]))
        return made

    return cases


def _swift_t5(models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator) -> list[Case]:
    """Whatever the mask says: diffusers gives T5 none."""
    cases = []
    for prompt in PROMPTS:
        ids = _token_ids(student, "text_encoder_3", options, prompt)
        states = models["text_encoder_3"](torch.from_numpy(ids)).last_hidden_state.transpose(1, 2)[:, :, None]
        mask = rng.integers(0, 2, ids.shape).astype(np.float32)
        cases.append(Case({"input_ids": ids.astype(np.float32), "attention_mask": mask}, [states.numpy()]))
    return cases


def _swift_transformer(
    models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator
) -> list[Case]:
    """The first of each pair with all its T5 or zero tokens; the second of each pair must not matter."""
    config = student.configs["transformer"]
    tokens, zeros = options.clip_tokens + T5_TOKENS, 0 if options.keep_t5 else T5_TOKENS
    cases = []
    for timestep in dict.fromkeys((options.timesteps[0], options.timesteps[-1])):
        latents = _latents(student, options, rng, 2)
        states = _normal(rng, 2, tokens, config["joint_attention_dim"])
        states[:, tokens - zeros :] = 0
        pooled = _normal(rng, 2, config["pooled_projection_dim"])
        inputs = {
            "latent_image_embeddings": latents,
            "timestep": np.array([timestep, 0], np.float32),
            "token_level_text_embeddings": np.ascontiguousarray(states.transpose(0, 2, 1)[:, :, None]),
            "pooled_text_embeddings": pooled[:, :, None, None],
        }
        first = (torch.from_numpy(array[:1]) for array in (latents, states, pooled))
        velocity = models["transformer"](*first, torch.tensor([timestep])).sample.numpy()
        cases.append(Case(inputs, [np.concatenate([velocity, velocity])]))
    return cases


def _swift_vae_decoder(
    models: Mapping[str, Any], student: Student, options: GraphOptions, rng: np.random.Generator
) -> list[Case]:
    [case] = _optimum_vae_decoder(models, student, options, rng)
    return [Case({"z": case.inputs["latent_sample"]}, case.outputs)]


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
