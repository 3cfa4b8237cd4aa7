"""Layout ``swift``: the contract of Apple's Swift ``StableDiffusion3Pipeline``, as apple/ml-stable-diffusion e12202c has it.

Names, shapes and the order of things are that client's (``swift/StableDiffusion/pipeline``: ``StableDiffusion3Pipeline.swift``,
``TextEncoderXL.swift``, ``TextEncoderT5.swift``, ``MultiModalDiffusionTransformer.swift``, ``Decoder.swift``). All is fp32.

==================================  ====================================================================================
``TextEncoder``, ``TextEncoder2``   ``input_ids`` to ``hidden_embeds`` (the state before the last layer), ``pooled_outputs``
``TextEncoderT5``                   ``input_ids``, ``attention_mask`` to ``encoder_hidden_states`` [1, channels, 1, tokens]
``MultiModalDiffusionTransformer``  ``latent_image_embeddings``, ``timestep``, ``token_level_text_embeddings``,
                                    ``pooled_text_embeddings``, all for two, to ``denoiser_output``
``VAEDecoder``                      ``z``, scaled and shifted latents, to ``image`` in [-1, 1]
==================================  ====================================================================================

There is no VAE encoder: the client reads four latent channels of it where SD3 has sixteen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from exporters.errors import Complaint, ExportError

if TYPE_CHECKING:
    from exporters.graphs import GraphOptions, GraphSpec
    from exporters.sampling import Sampling
    from exporters.student import Student
    from exporters.weights import Weight

T5_TOKENS = 77  # the client cuts T5's states to these, and feeds as many zero tokens where there is no T5
CLIENT = {
    "clip_tokens": 77,
    "text_encoder: hidden_size": 768,
    "text_encoder_2: hidden_size": 1280,
    "transformer: joint_attention_dim": 4096,
    "transformer: pooled_projection_dim": 2048,
}
"""Sizes that the client's own code holds; a student of others needs them changed there."""

ENCODER_IDS = {"text_encoder": "input_ids", "text_encoder_2": "input_ids_2", "text_encoder_3": "input_ids_3"}
"""Each encoder's token ids, by the name that they have elsewhere in a bundle: here every encoder calls its own ``input_ids``."""
Arrays = dict[str, np.ndarray]


def client_sizes(student: Student, clip_tokens: int) -> dict[str, int]:
    """What the student has in place of :data:`CLIENT`'s sizes."""
    sizes = {"clip_tokens": clip_tokens}
    for key in CLIENT.keys() - sizes.keys():
        component, name = key.split(": ")
        sizes[key] = int(student.configs[component][name])
    return sizes


def check_client_sampling(sampling: Sampling) -> None:
    """Refuse a sampler that the client does not have.

    Raises:
        ExportError: the student is sampled by re-noising.
    """
    if sampling.method != "euler":
        complaint = Complaint("--sampler", "the Swift client's scheduler cannot re-noise", "euler", sampling.method)
        raise ExportError("This student cannot be drawn by the layout swift.", [complaint], "--sampler euler, or --layout native")


def text_states(clips: Sequence[np.ndarray], t5: np.ndarray | None, joint_dim: int) -> np.ndarray:
    """Text states as the client puts them together.

    Args:
        clips: CLIP-L's and CLIP-G's states ``[1, clip tokens, channels]``.
        t5: T5's ``[1, joint_dim, 1, tokens]``; none where there is no T5.
        joint_dim: channels of the transformer's text states.

    Returns:
        ``[1, joint_dim, 1, clip tokens + 77]``: the CLIP states side by side, then T5's or zeros.
    """
    side_by_side = np.concatenate(clips, axis=-1)
    padded = np.pad(side_by_side, ((0, 0), (0, 0), (0, joint_dim - side_by_side.shape[-1])))
    after = np.zeros((1, joint_dim, 1, T5_TOKENS), np.float32) if t5 is None else t5[..., :T5_TOKENS]
    return np.concatenate([padded.transpose(0, 2, 1)[:, :, None], after], axis=-1)


def transformer_inputs(latents: np.ndarray, timestep: float, text: np.ndarray, pooled: np.ndarray) -> Arrays:
    """What the client feeds the transformer, with the prompt in the negative prompt's place too.

    Args:
        latents: ``[1, channels, height, width]``.
        timestep: 0 to 1000.
        text: ``[1, joint_dim, 1, tokens]``.
        pooled: ``[1, pooled]``.
    """
    return {
        "latent_image_embeddings": np.concatenate([latents, latents]),
        "timestep": np.full(2, timestep, np.float32),
        "token_level_text_embeddings": np.concatenate([text, text]),
        "pooled_text_embeddings": np.concatenate([pooled, pooled])[:, :, None, None],
    }


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
    from exporters.graphs import VAE_SCALE, GraphSpec, Port
    from exporters.restructure import swift, vae

    check_swift(options)
    configs, config = student.configs, student.configs["transformer"]
    joint, pooled, latents = config["joint_attention_dim"], config["pooled_projection_dim"], config["in_channels"]
    h, w = options.height // VAE_SCALE, options.width // VAE_SCALE
    grid = (h // config["patch_size"], w // config["patch_size"])
    channels = config["num_attention_heads"] * config["attention_head_dim"]

    def port(name: str, *shape: int) -> Port:
        return Port(name, "float32", shape)

    specs = []
    for name, path in (("text_encoder", "TextEncoder"), ("text_encoder_2", "TextEncoder2")):
        clip = configs[name]
        specs.append(
            GraphSpec(
                name,
                f"{path}.mlpackage",
                (name,),
                (port("input_ids", 1, options.clip_tokens),),
                (
                    port("hidden_embeds", 1, options.clip_tokens, clip["hidden_size"]),
                    port("pooled_outputs", 1, clip["projection_dim"]),
                ),
                lambda clip=clip, name=name: swift.SwiftClip(clip, name),  # type: ignore[misc]
                _weights_of(student, name),
                options.clip_tokens * 4 * clip["hidden_size"],
            )
        )
    if options.keep_t5:
        t5 = configs["text_encoder_3"]
        specs.append(
            GraphSpec(
                "text_encoder_3",
                "TextEncoderT5.mlpackage",
                ("text_encoder_3",),
                (port("input_ids", 1, T5_TOKENS), port("attention_mask", 1, T5_TOKENS)),
                (port("encoder_hidden_states", 1, t5["d_model"], 1, T5_TOKENS),),
                lambda: swift.SwiftT5(t5),
                _weights_of(student, "text_encoder_3"),
                T5_TOKENS * t5["d_ff"],
            )
        )
    null_tokens = 0 if options.keep_t5 else T5_TOKENS
    return [
        *specs,
        GraphSpec(
            "transformer",
            "MultiModalDiffusionTransformer.mlpackage",
            ("transformer",),
            (
                port("latent_image_embeddings", 2, latents, h, w),
                port("timestep", 2),
                port("token_level_text_embeddings", 2, joint, 1, options.clip_tokens + T5_TOKENS),
                port("pooled_text_embeddings", 2, pooled, 1, 1),
            ),
            (port("denoiser_output", 2, config["out_channels"] or latents, h, w),),
            lambda: swift.SwiftTransformer(config, grid, options.clip_tokens, null_tokens),
            _weights_of(student, "transformer"),
            grid[0] * grid[1] * 4 * channels,
        ),
        GraphSpec(
            "vae_decoder",
            "VAEDecoder.mlpackage",
            ("vae",),
            (port("z", 1, latents, h, w),),
            (port("image", 1, 3, options.height, options.width),),
            lambda: vae.VaeDecoder(configs["vae"], raw=False),
            _weights_of(student, "vae"),
            options.height * options.width * configs["vae"]["block_out_channels"][0],
        ),
    ]


def _weights_of(student: Student, component: str) -> Callable[[object], Mapping[str, Weight]]:
    return lambda module: module.weights(student.weights[component])  # type: ignore[attr-defined, no-any-return]
