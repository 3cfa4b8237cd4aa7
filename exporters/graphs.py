"""Every graph that can be exported: its inputs and outputs, the module that is traced, and where its weights come from.

=======================  ===============================================================
native ``text_encoder``  ``input_ids``, ``input_ids_2`` (``input_ids_3`` with T5) to
                         ``encoder_hidden_states``, ``pooled_projections``
native ``conditioner``   ``pooled_projections`` to ``modulations`` [steps, rows, channels]
native ``denoiser``      ``hidden_states``, ``encoder_hidden_states``, ``modulation``
                         (one step's rows) to ``out_sample``
native ``vae_decoder``   ``latent_sample`` (as sampled) to ``sample``, RGB in [0, 1]
optimum (each folder)    what ``ORTStableDiffusion3Pipeline`` feeds to what it reads
swift (each program)     what Apple's Swift client feeds to what it reads: :mod:`exporters.swift`
=======================  ===============================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from exporters.errors import Complaint, ExportError
from exporters.student import Student
from exporters.swift import swift_graphs
from exporters.weights import Weight

Layout = Literal["native", "optimum", "swift"]
Dim = int | str
VAE_SCALE = 8  # pixels per latent in SD3's VAE; checked against its configuration


@dataclass(frozen=True)
class Port:
    """One input or output: a name, a type (``float32``, ``int64``) and a shape whose symbolic sizes are names."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    Attributes:
        name: ``denoiser``, ...
        path: file (or, of a Core ML program, folder) inside the bundle.
        components: the student's components that its weights come from.
        inputs: what it takes.
        outputs: what it returns.
        module: makes the module to trace; call it on the meta device.
        weights: finds the weight behind each of the module's tensors.
        largest_activation: numbers in its largest intermediate result.
    """

    name: str
    path: str
    components: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    module: Callable[[], object]
    weights: Callable[[object], Mapping[str, Weight]]
    largest_activation: int

    @functools.cached_property
    def student_weights(self) -> dict[str, Weight]:
        """The student's tensors among its weights, by the name that they have in the module."""
        import torch

        with torch.device("meta"):
            module = self.module()
        return {name: weight for name, weight in self.weights(module).items() if weight.name}

    @property
    def parameters(self) -> int:
        """How many of the student's numbers it holds."""
        return sum(weight.elements for weight in self.student_weights.values())


@dataclass(frozen=True)
class GraphOptions:
    """What shapes the graphs of a bundle.

    Attributes:
        layout: ``native``, ``optimum`` or ``swift``.
        height: picture height in pixels.
        width: picture width in pixels.
        timesteps: the sampler's timesteps.
        clip_tokens: tokens of both CLIP encoders.
        keep_t5: keep the third text encoder; otherwise its tokens are null tokens.
        max_sequence_length: T5 tokens, or how many null tokens stand for them.
        dynamic: whether height and width may change at run time.
    """

    layout: Layout
    height: int
    width: int
    timesteps: tuple[float, ...]
    clip_tokens: int
    keep_t5: bool
    max_sequence_length: int
    dynamic: bool = False


def plan_graphs(student: Student, options: GraphOptions) -> list[GraphSpec]:
    """The graphs of a bundle, in the order in which they run.

    Raises:
        ExportError: the options do not fit the student.
    """
    _check(student, options)
    if options.layout == "swift":
        return swift_graphs(student, options)
    return _native(student, options) if options.layout == "native" else _optimum(student, options)


def _native(student: Student, options: GraphOptions) -> list[GraphSpec]:
    from exporters.restructure import conditioning, denoiser, text, vae

    configs, config = student.configs, student.configs["transformer"]
    joint, pooled, latents = config["joint_attention_dim"], config["pooled_projection_dim"], config["in_channels"]
    rows, channels = conditioning.modulation_count(config), conditioning.inner_dim(config)
    h, w = options.height // VAE_SCALE, options.width // VAE_SCALE
    grid = None if options.dynamic else (h // config["patch_size"], w // config["patch_size"])
    size: tuple[Dim, Dim] = ("latent_height", "latent_width") if options.dynamic else (h, w)
    picture: tuple[Dim, Dim] = ("height", "width") if options.dynamic else (options.height, options.width)
    tokens = options.clip_tokens + (options.max_sequence_length if options.keep_t5 else 1)
    ids = [("input_ids", options.clip_tokens), ("input_ids_2", options.clip_tokens)]
    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    if options.keep_t5:
        ids.append(("input_ids_3", options.max_sequence_length))
        encoders += ("text_encoder_3",)
    states = Port("encoder_hidden_states", "float32", (1, tokens, joint))
    pool = Port("pooled_projections", "float32", (1, pooled))
    null_tokens = 0 if options.keep_t5 else options.max_sequence_length
    return [
        GraphSpec(
            "text_encoder",
            "text_encoder.onnx",
            encoders,
            tuple(Port(name, "int64", (1, length)) for name, length in ids),
            (states, pool),
            lambda: text.TextEncoder(configs, options.keep_t5),
            lambda module: module.weights_of_all(student.weights),  # type: ignore[attr-defined]
            tokens * 4 * joint,
        ),
        GraphSpec(
            "conditioner",
            "conditioner.onnx",
            ("transformer",),
            (pool,),
            (Port("modulations", "float32", (len(options.timesteps), rows, channels)),),
            lambda: conditioning.Conditioner(config, options.timesteps),
            _weights_of(student, "transformer"),
            len(options.timesteps) * rows * channels,
        ),
        GraphSpec(
            "denoiser",
            "denoiser.onnx",
            ("transformer",),
            (
                Port("hidden_states", "float32", (1, latents, *size)),
                states,
                Port("modulation", "float32", (rows, channels)),
            ),
            (Port("out_sample", "float32", (1, latents, *size)),),
            lambda: denoiser.Denoiser(config, grid, null_tokens),
            _weights_of(student, "transformer"),
            h * w // config["patch_size"] ** 2 * 4 * channels,
        ),
        GraphSpec(
            "vae_decoder",
            "vae_decoder.onnx",
            ("vae",),
            (Port("latent_sample", "float32", (1, latents, *size)),),
            (Port("sample", "float32", (1, 3, *picture)),),
            lambda: vae.VaeDecoder(configs["vae"]),
            _weights_of(student, "vae"),
            options.height * options.width * configs["vae"]["block_out_channels"][0],
        ),
    ]


def _optimum(student: Student, options: GraphOptions) -> list[GraphSpec]:
    """Names and order of outputs as optimum-onnx 0.1.0 reads them; everything its callers may choose is dynamic.

    The transformer's output is ``out_sample``: named ``out_hidden_states``, optimum-onnx's IO binding writes it over the
    latents where guidance is off.
    """
    from exporters.restructure import standard, t5, transformer, vae

    configs, config = student.configs, student.configs["transformer"]
    joint, pooled, latents = config["joint_attention_dim"], config["pooled_projection_dim"], config["in_channels"]
    latent: tuple[Dim, ...] = ("batch", latents, "latent_height", "latent_width")
    picture: tuple[Dim, ...] = ("batch", 3, "height", "width")
    pixels = options.height * options.width
    specs = []
    for name in ("text_encoder", "text_encoder_2"):
        clip = configs[name]
        states = ["last_hidden_state", *(f"hidden_states.{i}" for i in range(clip["num_hidden_layers"] + 1))]
        outputs = [Port("text_embeds", "float32", ("batch", clip["projection_dim"]))]
        outputs += [Port(state, "float32", ("batch", "sequence", clip["hidden_size"])) for state in states]
        specs.append(
            GraphSpec(
                name,
                f"{name}/model.onnx",
                (name,),
                (Port("input_ids", "int64", ("batch", "sequence")),),
                tuple(outputs),
                lambda clip=clip, name=name: standard.StandardClip(clip, name),  # type: ignore[misc]
                _weights_of(student, name),
                options.clip_tokens * 4 * clip["hidden_size"],
            )
        )
    if options.keep_t5:
        t5_config = configs["text_encoder_3"]
        specs.append(
            GraphSpec(
                "text_encoder_3",
                "text_encoder_3/model.onnx",
                ("text_encoder_3",),
                (Port("input_ids", "int64", ("batch", "sequence")),),
                (Port("last_hidden_state", "float32", ("batch", "sequence", t5_config["d_model"])),),
                lambda: t5.T5Encoder(t5_config),
                _weights_of(student, "text_encoder_3"),
                options.max_sequence_length * t5_config["d_ff"],
            )
        )
    return [
        *specs,
        GraphSpec(
            "transformer",
            "transformer/model.onnx",
            ("transformer",),
            (
                Port("hidden_states", "float32", latent),
                Port("encoder_hidden_states", "float32", ("batch", "sequence", joint)),
                Port("pooled_projections", "float32", ("batch", pooled)),
                Port("timestep", "float32", ("batch",)),
            ),
            (Port("out_sample", "float32", latent),),
            lambda: transformer.Transformer(config),
            _weights_of(student, "transformer"),
            pixels // (VAE_SCALE * config["patch_size"]) ** 2 * 4 * config["num_attention_heads"] * config["attention_head_dim"],
        ),
        GraphSpec(
            "vae_decoder",
            "vae_decoder/model.onnx",
            ("vae",),
            (Port("latent_sample", "float32", latent),),
            (Port("sample", "float32", picture),),
            lambda: vae.VaeDecoder(configs["vae"], raw=False),
            _weights_of(student, "vae"),
            pixels * configs["vae"]["block_out_channels"][0],
        ),
        GraphSpec(
            "vae_encoder",
            "vae_encoder/model.onnx",
            ("vae",),
            (Port("sample", "float32", picture),),
            (Port("latent_parameters", "float32", ("batch", 2 * latents, "latent_height", "latent_width")),),
            lambda: vae.VaeEncoder(configs["vae"]),
            _weights_of(student, "vae"),
            pixels * configs["vae"]["block_out_channels"][0],
        ),
    ]


def _weights_of(student: Student, component: str) -> Callable[[object], Mapping[str, Weight]]:
    return lambda module: module.weights(student.weights[component])  # type: ignore[attr-defined, no-any-return]


def _check(student: Student, options: GraphOptions) -> None:
    config, vae = student.configs["transformer"], student.configs["vae"]
    step = VAE_SCALE * config["patch_size"]
    complaints = []
    if (scale := 2 ** (len(vae["block_out_channels"]) - 1)) != VAE_SCALE:
        complaints.append(Complaint("vae: block_out_channels", "another scale", f"{VAE_SCALE} pixels per latent", str(scale)))
    for name, size in (("height", options.height), ("width", options.width)):
        limit = config["pos_embed_max_size"] * step
        if size <= 0 or size % step or size > limit:
            complaints.append(Complaint(name, "does not fit the student", f"a multiple of {step}, at most {limit}", str(size)))
    if options.keep_t5 and not student.has_t5:
        complaints.append(Complaint("text_encoder_3", "cannot be kept: the student has none"))
    if not options.timesteps:
        complaints.append(Complaint("steps", "none", "at least 1"))
    for name in ("text_encoder", "text_encoder_2"):
        limit = student.configs[name]["max_position_embeddings"]
        if not 0 < options.clip_tokens <= limit:
            complaints.append(
                Complaint(name, "has too few positions for its tokenizer", f"at least {options.clip_tokens}", str(limit))
            )
    if not 0 < options.max_sequence_length <= 512:  # the pipeline of diffusers takes no more
        complaints.append(Complaint("max_sequence_length", "wrong", "1 to 512", str(options.max_sequence_length)))
    if complaints:
        raise ExportError("These options do not fit the student.", complaints)
