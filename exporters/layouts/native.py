"""Layout ``native``: the graphs that this project's own runtimes draw with."""

from __future__ import annotations

from exporters.choices import ENCODER_IDS
from exporters.layouts.spec import VAE_SCALE, Dim, GraphOptions, GraphSpec, Port, weights_of
from exporters.student.student import Student


def native_graphs(student: Student, options: GraphOptions) -> list[GraphSpec]:
    """The layout's graphs, in the order in which they run."""
    return [make(student, options) for make in (_text_encoder, _conditioner, _denoiser, _vae_decoder)]


def _latents(student: Student, options: GraphOptions, name: str) -> Port:
    h, w = options.height // VAE_SCALE, options.width // VAE_SCALE
    size: tuple[Dim, Dim] = ("latent_height", "latent_width") if options.dynamic else (h, w)
    return Port(name, "float32", (1, student.configs["transformer"]["in_channels"], *size))


def _states(student: Student, options: GraphOptions) -> Port:
    tokens = options.clip_tokens + (options.max_sequence_length if options.keep_t5 else 1)
    return Port("encoder_hidden_states", "float32", (1, tokens, student.configs["transformer"]["joint_attention_dim"]))


def _pooled(student: Student) -> Port:
    return Port("pooled_projections", "float32", (1, student.configs["transformer"]["pooled_projection_dim"]))


def _text_encoder(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.text import TextEncoder

    encoders = tuple(name for name in ENCODER_IDS if name != "text_encoder_3" or options.keep_t5)
    lengths = (options.max_sequence_length if name == "text_encoder_3" else options.clip_tokens for name in encoders)
    states = _states(student, options)
    _, tokens, joint = states.shape
    assert isinstance(tokens, int)
    return GraphSpec(
        name="text_encoder",
        path="text_encoder.onnx",
        components=encoders,
        inputs=tuple(Port(ENCODER_IDS[name], "int64", (1, length)) for name, length in zip(encoders, lengths, strict=True)),
        outputs=(states, _pooled(student)),
        module=lambda: TextEncoder(student.configs, options.keep_t5),
        weights=lambda module: module.weights_of_all(student.weights),  # type: ignore[attr-defined]
        largest_activation=tokens * 4 * int(joint),
    )


def _conditioner(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.modulations import modulation_count
    from exporters.restructure.conditioning import Conditioner, inner_dim

    config = student.configs["transformer"]
    table = len(options.timesteps), modulation_count(config), inner_dim(config)
    return GraphSpec(
        name="conditioner",
        path="conditioner.onnx",
        components=("transformer",),
        inputs=(_pooled(student),),
        outputs=(Port("modulations", "float32", table),),
        module=lambda: Conditioner(config, options.timesteps),
        weights=weights_of(student, "transformer"),
        largest_activation=table[0] * table[1] * table[2],
    )


def _denoiser(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.modulations import modulation_count
    from exporters.restructure.conditioning import inner_dim
    from exporters.restructure.denoiser import Denoiser

    config = student.configs["transformer"]
    step = VAE_SCALE * config["patch_size"]
    rows, columns = options.height // step, options.width // step
    grid = None if options.dynamic else (rows, columns)
    null_tokens = 0 if options.keep_t5 else options.max_sequence_length
    modulation = Port("modulation", "float32", (modulation_count(config), inner_dim(config)))
    return GraphSpec(
        name="denoiser",
        path="denoiser.onnx",
        components=("transformer",),
        inputs=(_latents(student, options, "hidden_states"), _states(student, options), modulation),
        outputs=(_latents(student, options, "out_sample"),),
        module=lambda: Denoiser(config, grid, null_tokens),
        weights=weights_of(student, "transformer"),
        largest_activation=rows * columns * 4 * inner_dim(config),
    )


def _vae_decoder(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.vae import VaeDecoder

    config = student.configs["vae"]
    picture: tuple[Dim, Dim] = ("height", "width") if options.dynamic else (options.height, options.width)
    return GraphSpec(
        name="vae_decoder",
        path="vae_decoder.onnx",
        components=("vae",),
        inputs=(_latents(student, options, "latent_sample"),),
        outputs=(Port("sample", "float32", (1, 3, *picture)),),
        module=lambda: VaeDecoder(config),
        weights=weights_of(student, "vae"),
        largest_activation=options.height * options.width * config["block_out_channels"][0],
    )
