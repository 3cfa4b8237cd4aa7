"""Names and shapes of a component's tensors by formula, in the order in which its class lists them.

Tests compare them with the classes of diffusers and transformers, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporters.student.weights.parameters import (
    ClipParameters,
    Parameters,
    T5Parameters,
    TinyVaeParameters,
    TransformerParameters,
    VaeParameters,
)

Shapes = dict[str, tuple[int, ...]]
_Tensors = Iterator[tuple[str, tuple[int, ...]]]
_TIMESTEP_FEATURES = 256  # sines and cosines of the timestep


def tensor_shapes(parameters: Parameters) -> Shapes:
    """Every tensor of a component with its shape."""
    match parameters:
        case ClipParameters():
            return dict(_clip(parameters))
        case T5Parameters():
            return dict(_t5(parameters))
        case TransformerParameters():
            return dict(_transformer(parameters))
        case VaeParameters():
            return dict(_vae(parameters))
        case TinyVaeParameters():
            return dict(_tiny_vae(parameters))


def _linear(name: str, outputs: int, inputs: int) -> _Tensors:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _conv(name: str, outputs: int, inputs: int, side: int = 3) -> _Tensors:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, channels: int) -> _Tensors:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _clip(config: ClipParameters) -> _Tensors:
    width, model = config.hidden_size, "text_model"
    yield f"{model}.embeddings.token_embedding.weight", (config.vocab_size, width)
    yield f"{model}.embeddings.position_embedding.weight", (config.max_position_embeddings, width)
    for i in range(config.num_hidden_layers):
        layer = f"{model}.encoder.layers.{i}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _linear(f"{layer}.mlp.fc1", config.intermediate_size, width)
        yield from _linear(f"{layer}.mlp.fc2", width, config.intermediate_size)
        yield from _norm(f"{layer}.layer_norm2", width)
    yield from _norm(f"{model}.final_layer_norm", width)
    yield "text_projection.weight", (config.projection_dim, width)


def _t5(config: T5Parameters) -> _Tensors:
    width, inner = config.d_model, config.num_heads * config.d_kv
    yield "shared.weight", (config.vocab_size, width)
    for i in range(config.num_layers):
        attention, feed_forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        for part in ("q", "k", "v"):
            yield f"{attention}.SelfAttention.{part}.weight", (inner, width)
        yield f"{attention}.SelfAttention.o.weight", (width, inner)
        if i == 0:  # every layer adds the first one's
            buckets = config.relative_attention_num_buckets
            yield f"{attention}.SelfAttention.relative_attention_bias.weight", (buckets, config.num_heads)
        yield f"{attention}.layer_norm.weight", (width,)
        for part in ("wi_0", "wi_1") if config.is_gated_act else ("wi",):
            yield f"{feed_forward}.DenseReluDense.{part}.weight", (config.d_ff, width)
        yield f"{feed_forward}.DenseReluDense.wo.weight", (width, config.d_ff)
        yield f"{feed_forward}.layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)


def _transformer(config: TransformerParameters) -> _Tensors:
    width = config.width
    yield "pos_embed.pos_embed", (1, config.pos_embed_max_size**2, width)
    yield from _conv("pos_embed.proj", width, config.in_channels, config.patch_size)
    features = {"timestep_embedder": _TIMESTEP_FEATURES, "text_embedder": config.pooled_projection_dim}
    for name, inputs in features.items():
        yield from _linear(f"time_text_embed.{name}.linear_1", width, inputs)
        yield from _linear(f"time_text_embed.{name}.linear_2", width, width)
    yield from _linear("context_embedder", config.caption_projection_dim, config.joint_attention_dim)
    for i in range(config.num_layers):
        yield from _joint_block(config, i)
    yield from _linear("norm_out.linear", 2 * width, width)
    out_channels = config.in_channels if config.out_channels is None else config.out_channels
    yield from _linear("proj_out", config.patch_size**2 * out_channels, width)


def _joint_block(config: TransformerParameters, index: int) -> _Tensors:
    """A block of the MMDiT; nothing reads the text's tokens after the last one, which leaves out what would make them."""
    name, width = f"transformer_blocks.{index}", config.width
    last, dual = index == config.num_layers - 1, index in config.dual_attention_layers
    yield from _linear(f"{name}.norm1.linear", (9 if dual else 6) * width, width)
    yield from _linear(f"{name}.norm1_context.linear", (2 if last else 6) * width, width)
    yield from _self_attention(f"{name}.attn", config, joint=True, last=last)
    if dual:
        yield from _self_attention(f"{name}.attn2", config)
    for part in ("ff",) if last else ("ff", "ff_context"):
        yield from _linear(f"{name}.{part}.net.0.proj", 4 * width, width)
        yield from _linear(f"{name}.{part}.net.2", width, 4 * width)


def _self_attention(name: str, config: TransformerParameters, joint: bool = False, last: bool = False) -> _Tensors:
    """Attention among the image's tokens, and where it is joint among the text's as well."""

    def norms(*parts: str) -> _Tensors:
        if config.qk_norm:
            yield from ((f"{name}.{part}.weight", (config.attention_head_dim,)) for part in parts)

    yield from norms("norm_q", "norm_k")
    projections = ["to_q", "to_k", "to_v"]
    projections += ["add_k_proj", "add_v_proj", "add_q_proj"] if joint else []
    projections += ["to_out.0"]
    projections += ["to_add_out"] if joint and not last else []
    for part in projections:
        yield from _linear(f"{name}.{part}", config.width, config.width)
    yield from norms("norm_added_q", "norm_added_k") if joint else ()


def _vae(config: VaeParameters) -> _Tensors:
    channels, latents = config.block_out_channels, config.latent_channels
    yield from _conv("encoder.conv_in", channels[0], config.in_channels)
    yield from _levels("encoder.down_blocks", channels, config.layers_per_block, "downsamplers")
    yield from _middle("encoder.mid_block", channels[-1], config.mid_block_add_attention)
    yield from _norm("encoder.conv_norm_out", channels[-1])
    yield from _conv("encoder.conv_out", 2 * latents, channels[-1])  # mean and logarithm of the variance
    yield from _conv("decoder.conv_in", channels[-1], latents)
    yield from _levels("decoder.up_blocks", channels[::-1], config.layers_per_block + 1, "upsamplers")
    yield from _middle("decoder.mid_block", channels[-1], config.mid_block_add_attention)
    yield from _norm("decoder.conv_norm_out", channels[0])
    yield from _conv("decoder.conv_out", config.out_channels, channels[0])
    if config.use_quant_conv:
        yield from _conv("quant_conv", 2 * latents, 2 * latents, side=1)
    if config.use_post_quant_conv:
        yield from _conv("post_quant_conv", latents, latents, side=1)


def _levels(name: str, channels: tuple[int, ...], layers: int, resampler: str) -> _Tensors:
    """Residual blocks of one resolution after the other; the last is not resampled."""
    inputs = channels[0]
    for i, outputs in enumerate(channels):
        for layer in range(layers):
            yield from _residual(f"{name}.{i}.resnets.{layer}", outputs, inputs)
            inputs = outputs
        if i < len(channels) - 1:
            yield from _conv(f"{name}.{i}.{resampler}.0.conv", outputs, outputs)


def _residual(name: str, outputs: int, inputs: int) -> _Tensors:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _conv(f"{name}.conv1", outputs, inputs)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.conv_shortcut", outputs, inputs, side=1)


def _middle(name: str, channels: int, attention: bool) -> _Tensors:
    if attention:
        yield from _norm(f"{name}.attentions.0.group_norm", channels)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _linear(f"{name}.attentions.0.{part}", channels, channels)
    for i in range(2):
        yield from _residual(f"{name}.resnets.{i}", channels, channels)


def _tiny_vae(config: TinyVaeParameters) -> _Tensors:
    """Both halves are lists of layers, numbered; activations and resizing have a number too."""
    number, width = 0, config.encoder_block_out_channels[0]
    for level, blocks in enumerate(config.num_encoder_blocks):
        if level == 0:
            yield from _conv(f"encoder.layers.{number}", width, config.in_channels)
        else:
            yield f"encoder.layers.{number}.weight", (width, width, 3, 3)
        yield from _tiny_blocks("encoder.layers", number + 1, blocks, width)
        number += 1 + blocks
    yield from _conv(f"encoder.layers.{number}", config.latent_channels, width)
    number, width = 2, config.decoder_block_out_channels[0]  # the first convolution, its activation
    yield from _conv("decoder.layers.0", width, config.latent_channels)
    *resized, last = config.num_decoder_blocks
    for blocks in resized:
        yield from _tiny_blocks("decoder.layers", number, blocks, width)
        number += blocks + 1  # resizing
        yield f"decoder.layers.{number}.weight", (width, width, 3, 3)
        number += 1
    yield from _tiny_blocks("decoder.layers", number, last, width)
    yield from _conv(f"decoder.layers.{number + last}", config.out_channels, width)


def _tiny_blocks(name: str, first: int, blocks: int, width: int) -> _Tensors:
    for number in range(first, first + blocks):
        for layer in (0, 2, 4):  # activations between
            yield from _conv(f"{name}.{number}.conv.{layer}", width, width)
