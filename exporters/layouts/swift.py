"""Layout ``swift``: the graphs that Apple's Swift client loads (:mod:`exporters.layouts.swift_client`)."""

from __future__ import annotations

from itertools import zip_longest

from exporters.errors import Complaint, ExportError
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec, Port, weights_of
from exporters.layouts.swift_client import T5_TOKENS
from exporters.student.student import Student


def check_client_sampling(sampling: Sampling) -> None:
    """Refuse a sampler that the client does not have, and guidance.

    Raises:
        ExportError: the student is sampled by re-noising, or guided in some steps alone.
    """
    if sampling.method != "euler":
        complaint = Complaint("--sampler", "the Swift client's scheduler makes Euler steps alone", "euler", sampling.method)
        raise ExportError("This student cannot be drawn by the layout swift.", [complaint], "--sampler euler, or --layout native")
    if len(set(sampling.guidance.scales(sampling.sigmas))) > 1:
        complaint = Complaint(
            "--guidance-interval",
            "the Swift client guides all steps alike",
            "all of them",
            f"{sampling.guidance.guidance_interval}",
        )
        raise ExportError("This student cannot be drawn by the layout swift.", [complaint], "leave it out, or --layout native")


def check_swift(options: GraphOptions) -> None:
    """Refuse what the client cannot be given.

    Raises:
        ExportError: another number of T5 tokens, or a dynamic size.
    """
    complaints = []
    if options.max_sequence_length != T5_TOKENS:
        got = str(options.max_sequence_length)
        complaints.append(Complaint("max_sequence_length", "the Swift client has its own", str(T5_TOKENS), got))
    if options.dynamic:
        complaints.append(Complaint("--dynamic", "the Swift client has one size", "--height and --width"))
    if complaints:
        raise ExportError("These options do not fit the layout swift.", complaints)


def swift_graphs(student: Student, options: GraphOptions) -> list[GraphSpec]:
    """The layout's graphs, in the order in which they run.

    Raises:
        ExportError: as :func:`check_swift`.
    """
    check_swift(options)
    encoders = [_clip(student, options, name) for name in ("text_encoder", "text_encoder_2")]
    if options.keep_t5:
        encoders.append(_t5(student))
    return [*encoders, _transformer(student, options), _vae_decoder(student, options)]


def _port(name: str, *shape: int) -> Port:
    return Port(name, "float32", shape)


def _clip(student: Student, options: GraphOptions, name: str) -> GraphSpec:
    from exporters.restructure.swift import SwiftClip

    config, tokens = student.configs[name], options.clip_tokens
    return GraphSpec(
        name=name,
        path="TextEncoder.mlpackage" if name == "text_encoder" else "TextEncoder2.mlpackage",
        components=(name,),
        inputs=(_port("input_ids", 1, tokens),),
        outputs=(
            _port("hidden_embeds", 1, tokens, config["hidden_size"]),
            _port("pooled_outputs", 1, config["projection_dim"]),
        ),
        module=lambda: SwiftClip(config, name),
        weights=weights_of(student, name),
        largest_activation=tokens * 4 * config["hidden_size"],
    )


def _t5(student: Student) -> GraphSpec:
    from exporters.restructure.swift import SwiftT5

    config = student.configs["text_encoder_3"]
    return GraphSpec(
        name="text_encoder_3",
        path="TextEncoderT5.mlpackage",
        components=("text_encoder_3",),
        inputs=(_port("input_ids", 1, T5_TOKENS), _port("attention_mask", 1, T5_TOKENS)),
        outputs=(_port("encoder_hidden_states", 1, config["d_model"], 1, T5_TOKENS),),
        module=lambda: SwiftT5(config),
        weights=weights_of(student, "text_encoder_3"),
        largest_activation=T5_TOKENS * config["d_ff"],
    )


def _transformer(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.conditioning import inner_dim
    from exporters.restructure.swift import SwiftTransformer

    config, latents = student.configs["transformer"], student.configs["transformer"]["in_channels"]
    h, w = options.height // VAE_SCALE, options.width // VAE_SCALE
    grid = (h // config["patch_size"], w // config["patch_size"])
    null_tokens = 0 if options.keep_t5 else T5_TOKENS

    def module() -> SwiftTransformer:
        client, own = options.client, options.timesteps
        assert client is not None  # of whoever makes the graph, which follows the schedule
        steps = [*zip_longest(client.timesteps, own, client.scales, fillvalue=own[-1])]  # an idle step may compute at any level
        return SwiftTransformer(config, grid, options.clip_tokens, null_tokens, steps, client.tolerance, options.guided)

    return GraphSpec(
        name="transformer",
        path="MultiModalDiffusionTransformer.mlpackage",
        components=("transformer",),
        inputs=(
            _port("latent_image_embeddings", 2, latents, h, w),
            _port("timestep", 2),
            _port("token_level_text_embeddings", 2, config["joint_attention_dim"], 1, options.clip_tokens + T5_TOKENS),
            _port("pooled_text_embeddings", 2, config["pooled_projection_dim"], 1, 1),
        ),
        outputs=(_port("denoiser_output", 2, config["out_channels"] or latents, h, w),),
        module=module,
        weights=weights_of(student, "transformer"),
        largest_activation=(2 if options.guided else 1) * grid[0] * grid[1] * 4 * inner_dim(config),
    )


def _vae_decoder(student: Student, options: GraphOptions) -> GraphSpec:
    from exporters.restructure.vae import VaeDecoder

    config = student.configs["vae"]
    latents = student.configs["transformer"]["in_channels"]
    return GraphSpec(
        name="vae_decoder",
        path="VAEDecoder.mlpackage",
        components=("vae",),
        inputs=(_port("z", 1, latents, options.height // VAE_SCALE, options.width // VAE_SCALE),),
        outputs=(_port("image", 1, 3, options.height, options.width),),
        module=lambda: VaeDecoder(config, raw=False),
        weights=weights_of(student, "vae"),
        largest_activation=options.height * options.width * config["block_out_channels"][0],
    )
