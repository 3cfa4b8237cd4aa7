"""Layout ``optimum``: what ``ORTStableDiffusion3Pipeline`` loads.

Names and order of outputs are as optimum-onnx 0.1.0 reads them; everything its callers may choose is dynamic. The transformer's
output is ``out_sample``: named ``out_hidden_states``, optimum-onnx's IO binding writes it over the latents where guidance is off.
"""

from __future__ import annotations

from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec, Port, largest_encoded, weights_of
from exporters.student.classes import component_class
from exporters.student.student import Student

_PICTURE = ("batch", 3, "height", "width")
_IDS = Port("input_ids", "int64", ("batch", "sequence"))
_ENCODED = {"AutoencoderKL": ("latent_parameters", 2), "AutoencoderTiny": ("latent_sample", 1)}
"""What a VAE's encoder returns, and of how many times the latents' channels: a law (mean, log-variance) or the latents."""


def optimum_graphs(student: Student, options: GraphOptions) -> list[GraphSpec]:
    """The layout's graphs, in the order in which they run; the VAE's encoder, for pictures that are drawn upon, is the last."""
    encoders = [_clip(student, options, name) for name in ("text_encoder", "text_encoder_2")]
    if options.keep_t5:
        encoders.append(_t5(student, options))
    return [*encoders, _transformer(student, options), _vae_decoder(student, options), _vae_encoder(student, options)]


def _clip(student: Student, options: GraphOptions, name: str) -> GraphSpec:
    from exporters.restructure.standard import StandardClip

    config = student.configs[name]
    states = ["last_hidden_state", *(f"hidden_states.{i}" for i in range(config["num_hidden_layers"] + 1))]
    return GraphSpec(
        name=name,
        path=f"{name}/model.onnx",
        components=(name,),
        inputs=(_IDS,),
        outputs=(
            Port("text_embeds", "float32", ("batch", config["projection_dim"])),
            *(Port(state, "float32", ("batch", "sequence", config["hidden_size"])) for state in states),
        ),
        module=lambda: StandardClip(config, name),
        weights=weights_of(student, name),
        largest_activation=options.clip_tokens * 4 * config["hidden_size"],
    )


def _t5(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.t5 import T5Encoder

    config = student.configs["text_encoder_3"]
    return GraphSpec(
        name="text_encoder_3",
        path="text_encoder_3/model.onnx",
        components=("text_encoder_3",),
        inputs=(_IDS,),
        outputs=(Port("last_hidden_state", "float32", ("batch", "sequence", config["d_model"])),),
        module=lambda: T5Encoder(config),
        weights=weights_of(student, "text_encoder_3"),
        largest_activation=options.max_sequence_length * config["d_ff"],
    )


def _latents(student: Student, name: str, times: int = 1) -> Port:
    channels = times * student.configs["transformer"]["in_channels"]
    return Port(name, "float32", ("batch", channels, "latent_height", "latent_width"))


def _transformer(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.conditioning import inner_dim
    from exporters.restructure.transformer import Transformer

    config = student.configs["transformer"]
    patches = options.height * options.width // (VAE_SCALE * config["patch_size"]) ** 2
    return GraphSpec(
        name="transformer",
        path="transformer/model.onnx",
        components=("transformer",),
        inputs=(
            _latents(student, "hidden_states"),
            Port("encoder_hidden_states", "float32", ("batch", "sequence", config["joint_attention_dim"])),
            Port("pooled_projections", "float32", ("batch", config["pooled_projection_dim"])),
            Port("timestep", "float32", ("batch",)),
        ),
        outputs=(_latents(student, "out_sample"),),
        module=lambda: Transformer(config),
        weights=weights_of(student, "transformer"),
        largest_activation=patches * 4 * inner_dim(config),
    )


def _vae_decoder(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.vae import VaeDecoder

    config = student.configs["vae"]
    return GraphSpec(
        name="vae_decoder",
        path="vae_decoder/model.onnx",
        components=("vae",),
        inputs=(_latents(student, "latent_sample"),),
        outputs=(Port("sample", "float32", _PICTURE),),
        module=lambda: VaeDecoder(config, raw=False),
        weights=weights_of(student, "vae"),
        largest_activation=options.height * options.width * config["block_out_channels"][0],
    )


def _vae_encoder(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.vae import VaeEncoder

    config = student.configs["vae"]
    return GraphSpec(
        name="vae_encoder",
        path="vae_encoder/model.onnx",
        components=("vae",),
        inputs=(Port("sample", "float32", _PICTURE),),
        outputs=(_latents(student, *_ENCODED[component_class("vae", config)]),),
        module=lambda: VaeEncoder(config, raw=False),
        weights=weights_of(student, "vae"),
        largest_activation=largest_encoded(config, options),
    )
