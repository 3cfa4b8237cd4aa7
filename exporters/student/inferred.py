"""Configurations that no file has: inferred from the shapes of a component's tensors, under original names or diffusers'."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
HEAD = 64  # channels of a head where no norm says it: all released models of this family
_TINY = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(conv\.0\.)?weight")


def is_original_transformer(names: Collection[str]) -> bool:
    """Whether a transformer's tensors have the names of Stability's own code."""
    return any("joint_blocks." in name for name in names)


def is_original_vae(names: Collection[str]) -> bool:
    """Whether a VAE's tensors have the names of CompVis' code."""
    return any(name.startswith(("encoder.down.", "decoder.up.")) for name in names)


def infer_transformer_config(shapes: Shapes) -> dict[str, Any]:
    """SD3's configuration from the shapes of its tensors."""
    if is_original_transformer(shapes):
        block, norm, second = "joint_blocks.{}.x_block.", "attn.ln_q.weight", "attn2.qkv.weight"
        patches, positions, pooled = "x_embedder.proj.weight", "pos_embed", "y_embedder.mlp.0.weight"
        last = "final_layer.linear.weight"
    else:
        block, norm, second = "transformer_blocks.{}.", "attn.norm_q.weight", "attn2.to_q.weight"
        patches, positions = "pos_embed.proj.weight", "pos_embed.pos_embed"
        pooled, last = "time_text_embed.text_embedder.linear_1.weight", "proj_out.weight"
    start = block.split(".")[0] + "."
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith(start)}
    channels, in_channels, patch, _ = shapes[patches]
    normed = shapes.get(block.format(0) + norm)
    head_dim = normed[0] if normed else HEAD
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": in_channels,
        "out_channels": shapes[last][0] // patch**2,
        "num_layers": len(blocks),
        "attention_head_dim": head_dim,
        "num_attention_heads": channels // head_dim,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes[pooled][1],
        "pos_embed_max_size": round(shapes[positions][1] ** 0.5),
        "dual_attention_layers": sorted(i for i in blocks if block.format(i) + second in shapes),
        "qk_norm": "rms_norm" if normed else None,
    }


def infer_vae_config(shapes: Shapes) -> dict[str, Any]:
    """An ``AutoencoderKL``'s configuration from its shapes; scaling and shift are SD3's."""
    start = "encoder.down.{}.block." if is_original_vae(shapes) else "encoder.down_blocks.{}.resnets."
    conv = "0.conv2.weight"
    levels = _count(shapes, start.split("{", maxsplit=1)[0])
    layers = _count(shapes, start.format(0))
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[start.format(i) + conv][0] for i in range(levels)],
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    }


def _count(names: Iterable[str], start: str) -> int:
    """How many numbers follow a beginning.

    >>> _count(["a.0.x", "a.1.x", "a.1.y", "b.7"], "a.")
    2
    """
    return len({name.removeprefix(start).split(".")[0] for name in names if name.startswith(start)})


def infer_tiny_vae_config(shapes: Shapes) -> dict[str, Any]:
    """An ``AutoencoderTiny``'s configuration from its shapes; scaling and shift are TAESD3's, which takes latents as they are.

    Each half's layers are a list, in which a plain convolution begins each level and ends the half; between them are the level's
    blocks, known by ``conv.0``.
    """
    blocks, channels = {}, {}
    for half in ("encoder", "decoder"):
        layers = {int(match[2]): bool(match[3]) for name in shapes if (match := _TINY.fullmatch(name)) and match[1] == half}
        plain = [layer for layer in sorted(layers) if not layers[layer]]
        blocks[half] = [sum(first < layer < last for layer in layers) for first, last in itertools.pairwise(plain)]
        channels[half] = [shapes[f"{half}.layers.{layer}.weight"][0] for layer in plain[:-1]]
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": shapes["decoder.layers.0.weight"][1],
        "encoder_block_out_channels": channels["encoder"],
        "decoder_block_out_channels": channels["decoder"],
        "num_encoder_blocks": blocks["encoder"],
        "num_decoder_blocks": blocks["decoder"],
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    }


def infer_t5_config(shapes: Shapes) -> dict[str, Any]:
    """A T5 v1.1 encoder's configuration from its shapes."""
    first = "encoder.block.0.layer.0.SelfAttention."
    vocabulary = shapes.get("shared.weight") or shapes["encoder.embed_tokens.weight"]
    buckets, heads = shapes[f"{first}relative_attention_bias.weight"]
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": vocabulary[0],
        "d_model": vocabulary[1],
        "d_kv": shapes[f"{first}q.weight"][0] // heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        "num_layers": _count(shapes, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
    }
