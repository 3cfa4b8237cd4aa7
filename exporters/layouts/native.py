"""Layout ``native``: the graphs that this project's own runtimes draw with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from exporters.choices import ENCODER_IDS
from exporters.layouts.spec import VAE_SCALE, Dim, GraphOptions, GraphSpec, Port, largest_encoded, weights_of
from exporters.scales import Size, sized_graph
from exporters.student.classes import component_class
from exporters.student.student import Student

Make = Callable[[Student, GraphOptions], GraphSpec]


def native_graphs(student: Student, options: GraphOptions) -> list[GraphSpec]:
    """The layout's graphs, in the order in which they run; the VAE's encoder, for pictures that are drawn upon, is the last.

    After each graph come those that differ from it in size alone.
    """
    others = tuple((height // VAE_SCALE, width // VAE_SCALE) for height, width in options.other_sizes)
    made = [_text_encoder(student, options), _conditioner(student, options)]
    made += _of_sizes(_denoiser, student, options, options.sizes)
    made += _of_sizes(_vae_decoder, student, options, others)
    if options.vae_encoder:
        made += _of_sizes(_vae_encoder, student, options, others)
    return made


def _of_sizes(make: Make, student: Student, options: GraphOptions, sizes: Sequence[Size]) -> Iterator[GraphSpec]:
    """A graph of the picture's size, and those of other sizes of latents."""
    own = make(student, options)
    yield own
    for rows, columns in sizes:
        graph = make(student, replace(options, height=rows * VAE_SCALE, width=columns * VAE_SCALE))
        name = sized_graph(own.name, (rows, columns))
        yield replace(graph, name=name, path=f"{name}.onnx", shares=own.name)


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


def _picture(options: GraphOptions) -> Port:
    size: tuple[Dim, Dim] = ("height", "width") if options.dynamic else (options.height, options.width)
    return Port("sample", "float32", (1, 3, *size))


def can_be_in_bands(student: Student) -> bool:
    """Whether the student's VAE can be computed in bands of rows; an ``AutoencoderTiny`` takes little memory as it is."""
    return component_class("vae", student.configs["vae"]) == "AutoencoderKL"


def _vae_decoder(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.vae import VaeDecoder

    config = student.configs["vae"]
    return GraphSpec(
        name="vae_decoder",
        path="vae_decoder.onnx",
        components=("vae",),
        inputs=(_latents(student, options, "latent_sample"),),
        outputs=(_picture(options),),
        module=lambda: VaeDecoder(config, bands=options.vae_bands),
        weights=weights_of(student, "vae"),
        largest_activation=options.height * options.width * config["block_out_channels"][0],
        bands=options.vae_bands,
    )


def _vae_encoder(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.vae import VaeEncoder

    config = student.configs["vae"]
    law = ("latent_mean", "latent_log_variance") if component_class("vae", config) == "AutoencoderKL" else ("latent_mean",)
    return GraphSpec(
        name="vae_encoder",
        path="vae_encoder.onnx",
        components=("vae",),
        inputs=(_picture(options),),
        outputs=tuple(_latents(student, options, name) for name in law),
        module=lambda: VaeEncoder(config, bands=options.vae_bands),
        weights=weights_of(student, "vae"),
        largest_activation=largest_encoded(config, options),
        bands=options.vae_bands,
    )
