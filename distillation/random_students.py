"""Random-weight students of any shape and size, streamed to disk.

Weights are drawn so that signals keep their scale through the network (variance 1 / fan-in, small AdaLN), so that memory,
time and numerics are those of a real student; the pictures are noise. Tokenizers are the built-in student's, with the
special tokens moved to the end of the vocabulary.

    flash-deploy make-student --preset mid -o students/mid
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distillation.write import Dtype, itemsize, write_clip_tokenizer, write_component, write_index
from exporters.errors import Complaint, ExportError
from exporters.student.student import BUILTIN_STUDENT
from exporters.student.weights.templates import expected_shapes
from quantization.folders import new_folder

CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class ClipShape:
    """A CLIP text encoder."""

    hidden: int
    layers: int
    heads: int
    projection: int
    activation: str
    vocab: int
    positions: int


@dataclass(frozen=True)
class T5Shape:
    """A T5 encoder, as wide as the joint attention."""

    layers: int
    heads: int
    head_dim: int
    feed_forward: int
    vocab: int


@dataclass(frozen=True)
class TinyVaeShape:
    """An ``AutoencoderTiny``.

    Attributes:
        encoder_width: channels of its encoder, at every level.
        decoder_width: of its decoder.
        encoder_blocks: blocks of the encoder's levels, the largest picture first.
        decoder_blocks: of the decoder's, the latents first.
    """

    encoder_width: int
    decoder_width: int
    encoder_blocks: tuple[int, int, int, int]
    decoder_blocks: tuple[int, int, int, int]


@dataclass(frozen=True)
class StudentShape:
    """Everything that sizes a student.

    Attributes:
        layers: MMDiT blocks.
        heads: attention heads of the MMDiT.
        head_dim: channels of a head.
        dual_layers: how many first blocks have dual attention.
        qk_norm: RMS norm on queries and keys.
        joint: width of the text states.
        max_positions: side of the positional table, in patches.
        sample_size: side of the latents that the positions are scaled for.
        clip: CLIP-L.
        clip_2: CLIP-G.
        t5: the third text encoder; none leaves it out.
        vae_channels: channels of the VAE's levels.
        vae_layers: residual blocks of a level.
        vae_groups: groups of its norms.
        tiny_vae: an ``AutoencoderTiny`` in that VAE's place.
        dtype: how weights are stored.
    """

    layers: int
    heads: int
    head_dim: int
    dual_layers: int
    qk_norm: bool
    joint: int
    max_positions: int
    sample_size: int
    clip: ClipShape
    clip_2: ClipShape
    t5: T5Shape | None
    vae_channels: tuple[int, int, int, int]
    vae_layers: int
    vae_groups: int
    tiny_vae: TinyVaeShape | None = None
    dtype: Dtype = "fp16"

    def __post_init__(self) -> None:
        """Refuse a shape that no student has.

        Raises:
            ExportError: with every complaint.
        """
        complaints = []
        if not 0 <= self.dual_layers <= self.layers:
            complaints.append(
                Complaint("dual_layers", "more than there are", f"0 to {self.layers} layers", str(self.dual_layers))
            )
        if self.head_dim % 4:
            complaints.append(Complaint("head_dim", "wrong", "a multiple of 4", str(self.head_dim)))
        if complaints:
            raise ExportError("The student cannot be made.", complaints)


_FULL = StudentShape(
    layers=24,
    heads=24,
    head_dim=64,
    dual_layers=13,
    qk_norm=True,
    joint=4096,
    max_positions=384,
    sample_size=128,
    clip=ClipShape(768, 12, 12, 768, "quick_gelu", 49408, 77),
    clip_2=ClipShape(1280, 32, 20, 1280, "gelu", 49408, 77),
    t5=T5Shape(24, 64, 64, 10240, 32128),
    vae_channels=(128, 256, 512, 512),
    vae_layers=2,
    vae_groups=32,
)
# full: Stable Diffusion 3.5 Medium (huggingface.co/stabilityai/stable-diffusion-3.5-medium, config.json of each component).
PRESETS = {
    "tiny": StudentShape(
        layers=3,
        heads=3,
        head_dim=16,
        dual_layers=1,
        qk_norm=True,
        joint=96,
        max_positions=12,
        sample_size=16,
        clip=ClipShape(32, 3, 2, 32, "quick_gelu", 700, 20),
        clip_2=ClipShape(48, 2, 3, 40, "gelu", 700, 20),
        t5=T5Shape(2, 3, 16, 64, 160),
        vae_channels=(8, 8, 16, 16),
        vae_layers=1,
        vae_groups=4,
        dtype="fp32",
    ),
    "mid": replace(_FULL, layers=6, dual_layers=4, t5=None),
    "full": _FULL,
}
_TAESD3 = TinyVaeShape(64, 64, (1, 3, 3, 3), (3, 3, 3, 1))  # huggingface.co/madebyollin/taesd3, config.json
TINY_VAES = {"tiny": TinyVaeShape(8, 12, (1, 1, 2, 0), (2, 1, 1, 1)), "mid": _TAESD3, "full": _TAESD3}
"""The ``AutoencoderTiny`` of each preset."""


def preset_shape(name: str, t5: bool | None = None, tiny_decoder: bool = False, **changes: Any) -> StudentShape:
    """A preset with some of its sizes changed.

    Args:
        name: a key of :data:`PRESETS`.
        t5: with or without the third text encoder; by default as the preset has it.
        tiny_decoder: an ``AutoencoderTiny`` (:data:`TINY_VAES`) in the VAE's place.
        changes: other fields of :class:`StudentShape`. Where only the layers change, no more of them have dual attention than
            there are.

    Raises:
        ExportError: there is no such student.
    """
    shape = PRESETS[name]
    if t5 is not None:
        changes["t5"] = (shape.t5 or PRESETS["full"].t5) if t5 else None
    if tiny_decoder:
        changes["tiny_vae"] = TINY_VAES[name]
    changes.setdefault("dual_layers", min(shape.dual_layers, changes.get("layers", shape.layers)))
    return replace(shape, **changes)


def make_student(shape: StudentShape, folder: Path, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write a student with random weights; at most one chunk of a tensor is in memory at a time.

    Args:
        shape: its shape.
        folder: where; it must not exist.
        seed: the same seed makes the same student.
        progress: called with bytes written and bytes in all.

    Raises:
        ExportError: the folder is there already.
        WritingError: it cannot be written; nothing is left behind.
    """
    if os.path.lexists(folder):
        raise ExportError("The student is not written.", [Complaint(str(folder), "is there already")], "give another folder")
    with new_folder(folder) as draft:
        _write(shape, draft, seed, progress)
    return folder


def _write(shape: StudentShape, draft: Path, seed: int, progress: Callable[[int, int], None] | None) -> None:
    configs = configs_of(shape)
    shapes = {component: expected_shapes(component, config) for component, config in configs.items()}
    total = sum(math.prod(s) * itemsize(shape.dtype) for tensors in shapes.values() for s in tensors.values())
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        if progress:
            progress(written, total)

    for i, (component, tensors) in enumerate(shapes.items()):
        rng = np.random.default_rng([seed, i])
        chunks = {name: functools.partial(_values, name, size, shape, rng) for name, size in tensors.items()}
        write_component(draft / component, configs[component], tensors, chunks, shape.dtype, count)
    _write_rest(shape, configs, draft)


def _values(name: str, size: tuple[int, ...], shape: StudentShape, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The numbers of one tensor, in chunks of at most a few million."""
    if name == "pos_embed.pos_embed":
        yield from _positions(shape)
        return
    mean, spread = _distribution(name, size)
    left = math.prod(size)
    while left:
        count = min(left, CHUNK_ELEMENTS)
        yield mean + spread * rng.standard_normal(count, dtype=np.float32)
        left -= count


def _distribution(name: str, size: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation that keep the scale of signals."""
    if len(size) == 1:
        return (1.0 if name.endswith("weight") else 0.0), 0.1  # norms near 1, biases near 0
    if "embedding" in name or name == "shared.weight":
        return 0.0, 1.0 if "position" not in name else 0.3
    fan_in = math.prod(size[1:])
    gain = 0.3 if ".norm" in name or name.startswith("norm_out") else 1.0  # AdaLN: modulations of a trained size
    return 0.0, gain / math.sqrt(fan_in)


def _positions(shape: StudentShape) -> Iterator[np.ndarray]:
    """Diffusers' positional table, a row of patches at a time (``get_2d_sincos_pos_embed``)."""
    channels, side = shape.heads * shape.head_dim, shape.max_positions
    coordinate = np.arange(side) / (side / (shape.sample_size // 2))
    frequency = 1.0 / 10000 ** (np.arange(channels // 4) / (channels / 4.0))
    angles = np.outer(coordinate, frequency)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)  # [side, channels / 2]
    for row in table:
        yield np.concatenate([table, np.broadcast_to(row, table.shape)], axis=1).reshape(-1)


def configs_of(shape: StudentShape) -> dict[str, dict[str, Any]]:
    """``config.json`` of each component of a student of that shape."""
    configs = {
        "text_encoder": _clip_config(shape.clip, pad=shape.clip.vocab - 1),
        "text_encoder_2": _clip_config(shape.clip_2, pad=0),
        "transformer": _transformer_config(shape),
        "vae": _vae_config(shape) if shape.tiny_vae is None else _tiny_vae_config(shape.tiny_vae),
    }
    return configs | ({"text_encoder_3": _t5_config(shape.t5, shape.joint)} if shape.t5 else {})


def _clip_config(clip: ClipShape, pad: int) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "hidden_size": clip.hidden,
        "intermediate_size": 4 * clip.hidden,
        "num_hidden_layers": clip.layers,
        "num_attention_heads": clip.heads,
        "projection_dim": clip.projection,
        "hidden_act": clip.activation,
        "vocab_size": clip.vocab,
        "max_position_embeddings": clip.positions,
        "layer_norm_eps": 1e-5,
        "bos_token_id": clip.vocab - 2,
        "eos_token_id": clip.vocab - 1,
        "pad_token_id": pad,
    }


def _t5_config(t5: T5Shape, joint: int) -> dict[str, Any]:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": joint,
        "d_kv": t5.head_dim,
        "d_ff": t5.feed_forward,
        "num_heads": t5.heads,
        "num_layers": t5.layers,
        "num_decoder_layers": t5.layers,
        "vocab_size": t5.vocab,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    }


def _transformer_config(shape: StudentShape) -> dict[str, Any]:
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": shape.sample_size,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": shape.layers,
        "attention_head_dim": shape.head_dim,
        "num_attention_heads": shape.heads,
        "joint_attention_dim": shape.joint,
        "caption_projection_dim": shape.heads * shape.head_dim,
        "pooled_projection_dim": shape.clip.projection + shape.clip_2.projection,
        "pos_embed_max_size": shape.max_positions,
        "dual_attention_layers": list(range(shape.dual_layers)),
        "qk_norm": "rms_norm" if shape.qk_norm else None,
    }


def _vae_config(shape: StudentShape) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "block_out_channels": list(shape.vae_channels),
        "layers_per_block": shape.vae_layers,
        "norm_num_groups": shape.vae_groups,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "act_fn": "silu",
        "mid_block_add_attention": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "sample_size": 8 * shape.sample_size,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "force_upcast": True,
    }


def _tiny_vae_config(vae: TinyVaeShape) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderTiny",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "encoder_block_out_channels": [vae.encoder_width] * 4,
        "decoder_block_out_channels": [vae.decoder_width] * 4,
        "block_out_channels": [vae.decoder_width] * 4,
        "num_encoder_blocks": list(vae.encoder_blocks),
        "num_decoder_blocks": list(vae.decoder_blocks),
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "force_upcast": False,
    }


def _write_rest(shape: StudentShape, configs: Mapping[str, Any], folder: Path) -> None:
    """Tokenizers, scheduler, index, and that it needs no guidance."""
    for name, clip in (("tokenizer", shape.clip), ("tokenizer_2", shape.clip_2)):
        write_clip_tokenizer(BUILTIN_STUDENT / name, folder / name, vocab=clip.vocab, positions=clip.positions)
    if shape.t5:
        shutil.copytree(BUILTIN_STUDENT / "tokenizer_3", folder / "tokenizer_3")
    shutil.copytree(BUILTIN_STUDENT / "scheduler", folder / "scheduler")
    write_index(folder, configs)
    (folder / "student.json").write_text(json.dumps({"guidance_scale": 1.0}))  # noise is as good without
