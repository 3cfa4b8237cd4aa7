"""The parameters of a student's classes, as data: the values that the formulas cover, and the classes' defaults.

A configuration is covered where each of its keys is here, with a value that its class is sure to take. For any other the class
itself is made (:func:`exporters.student.weights.templates.reference_module`), at the cost of seconds of imports, and refuses what
it cannot be: students are opened and refused as if it were always asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from exporters.student.classes import component_class
from exporters.student.configs import Activation, Blocks, Count, Index, Layers, Levels

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
StoredType = Literal["float16", "bfloat16", "float32"]


class _Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys whose default is UNSET shape no tensor and no export reads them: they may be there."""


class _TextParameters(_Parameters, frozen=True, kw_only=True):
    """What transformers writes into every configuration."""

    architectures: list[str] | UnsetType | None = UNSET
    model_type: str | UnsetType = UNSET
    dtype: StoredType | UnsetType | None = UNSET
    torch_dtype: StoredType | UnsetType | None = UNSET
    transformers_version: str | UnsetType | None = UNSET
    initializer_factor: float | UnsetType = UNSET
    pad_token_id: Index | UnsetType | None = UNSET


class ClipParameters(_TextParameters, frozen=True, kw_only=True):
    """``CLIPTextModelWithProjection``."""

    vocab_size: Count = 49408
    hidden_size: Count = 512
    intermediate_size: Count = 2048
    projection_dim: Count = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Count = 8
    max_position_embeddings: Count = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: Index = 49407
    bos_token_id: Index | UnsetType | None = UNSET
    attention_dropout: Share | UnsetType = UNSET
    dropout: Share | UnsetType = UNSET
    initializer_range: float | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("the class refuses a width that does not divide among the heads")


class T5Parameters(_TextParameters, frozen=True, kw_only=True):
    """``T5EncoderModel``; ``feed_forward_proj`` says the activation and whether it is gated, where these are not given."""

    vocab_size: Count = 32128
    d_model: Count = 512
    d_kv: Count = 64
    d_ff: Count = 2048
    num_layers: Layers = 6
    num_heads: Count = 8
    relative_attention_num_buckets: Count = 32
    relative_attention_max_distance: Count = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    dense_act_fn: Activation | UnsetType = UNSET
    is_gated_act: bool | UnsetType = UNSET
    is_decoder: Literal[False] = False
    num_decoder_layers: Layers | UnsetType | None = UNSET
    decoder_start_token_id: Index | UnsetType = UNSET
    eos_token_id: Index | UnsetType | None = UNSET
    dropout_rate: Share | UnsetType = UNSET
    classifier_dropout: Share | UnsetType = UNSET
    is_encoder_decoder: bool | UnsetType = UNSET
    n_positions: Count | UnsetType = UNSET
    output_past: bool | UnsetType = UNSET
    scale_decoder_outputs: bool | UnsetType = UNSET
    tie_word_embeddings: bool | UnsetType = UNSET
    use_cache: bool | UnsetType = UNSET

    def __post_init__(self) -> None:
        activation = self.feed_forward_proj.removeprefix("gated-")
        if activation not in get_args(Activation):
            raise ValueError("the class may know other activations")
        gated = activation != self.feed_forward_proj
        if self.is_gated_act is UNSET:
            msgspec.structs.force_setattr(self, "is_gated_act", gated)
        if self.dense_act_fn is UNSET:  # the first checkpoints of the gated kind said gelu and meant its approximation
            msgspec.structs.force_setattr(self, "dense_act_fn", "gelu_new" if gated and activation == "gelu" else activation)


class TransformerParameters(_Parameters, frozen=True, kw_only=True):
    """``SD3Transformer2DModel``."""

    sample_size: Count = 128
    patch_size: Count = 2
    in_channels: Count = 16
    num_layers: Layers = 18
    attention_head_dim: Count = 64
    num_attention_heads: Count = 18
    joint_attention_dim: Count = 4096
    caption_projection_dim: Count = 1152
    pooled_projection_dim: Count = 2048
    out_channels: Count | None = 16
    pos_embed_max_size: Count = 96
    dual_attention_layers: tuple[Index, ...] = ()
    qk_norm: Literal["rms_norm"] | None = None

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError("the class refuses a width that sines and cosines of two axes cannot share")
        if self.sample_size < self.patch_size:
            raise ValueError("the class divides by the number of the sample's patches")

    @property
    def width(self) -> int:
        """Channels of the image's tokens."""
        return self.num_attention_heads * self.attention_head_dim


class VaeParameters(_Parameters, frozen=True, kw_only=True):
    """``AutoencoderKL``, with blocks of the one kind that SD3's has."""

    in_channels: Count = 3
    out_channels: Count = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    block_out_channels: Levels = (64,)
    layers_per_block: Layers = 1
    act_fn: Literal["silu"] = "silu"
    latent_channels: Count = 4
    norm_num_groups: Count = 32
    sample_size: Count = 32
    scaling_factor: Any = 0.18215
    shift_factor: Any = None
    latents_mean: Any = None
    latents_std: Any = None
    force_upcast: Any = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        if not len(self.down_block_types) == len(self.up_block_types) == len(self.block_out_channels):
            raise ValueError("the class makes other levels, or fails")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError("the class refuses channels that do not divide among the groups")


class TinyVaeParameters(_Parameters, frozen=True, kw_only=True):
    """``AutoencoderTiny``, of one width in each half: of another it could not run."""

    in_channels: Count = 3
    out_channels: Count = 3
    encoder_block_out_channels: Levels = (64, 64, 64, 64)
    decoder_block_out_channels: Levels = (64, 64, 64, 64)
    block_out_channels: Levels | UnsetType = UNSET
    act_fn: Literal["relu", "silu", "swish", "gelu"] = "relu"
    upsample_fn: str = "nearest"
    latent_channels: Count = 4
    upsampling_scaling_factor: Count = 2
    num_encoder_blocks: Blocks = (1, 3, 3, 3)
    num_decoder_blocks: Blocks = (3, 3, 3, 1)
    latent_magnitude: Any = 3
    latent_shift: Any = 0.5
    scaling_factor: Any = 1.0
    shift_factor: Any = 0.0
    force_upcast: Literal[False] = False

    def __post_init__(self) -> None:
        halves = (
            (self.encoder_block_out_channels, self.num_encoder_blocks),
            (self.decoder_block_out_channels, self.num_decoder_blocks),
        )
        if any(len(channels) != len(blocks) for channels, blocks in halves):
            raise ValueError("the class refuses levels without a number of blocks")
        if any(len(set(channels)) > 1 for channels, _ in halves):
            raise ValueError("the class makes blocks that do not fit each other")
        if self.block_out_channels is UNSET:
            msgspec.structs.force_setattr(self, "block_out_channels", self.decoder_block_out_channels)


Parameters = ClipParameters | T5Parameters | TransformerParameters | VaeParameters | TinyVaeParameters

_KINDS: dict[str, type[Parameters]] = {
    "CLIPTextModelWithProjection": ClipParameters,
    "T5EncoderModel": T5Parameters,
    "SD3Transformer2DModel": TransformerParameters,
    "AutoencoderKL": VaeParameters,
    "AutoencoderTiny": TinyVaeParameters,
}


def covered(component: str, config: Mapping[str, Any]) -> Parameters | None:
    """The parameters that a configuration gives its class; none where a key or a value is not covered.

    Keys that begin with an underscore are notes of who wrote the file; no class is given them.
    """
    given = public(config)
    try:
        parameters = msgspec.convert(
            given, _KINDS[component_class(component, config)]
        )  # strict: a boolean is no number, a string neither
    except msgspec.ValidationError:
        return None
    numbers = {key: value for key, value in given.items() if isinstance(value, int | float)}
    if any(type(getattr(parameters, key)) is not type(value) for key, value in numbers.items()):
        return None  # 1 for 1.0, or the other way round: the classes tell them apart
    return parameters


def resolved(parameters: Parameters, config: Mapping[str, Any]) -> dict[str, Any]:
    """A covered configuration with the defaults of all keys that shape a tensor or that an export reads."""
    filled = {key: getattr(parameters, key) for key in parameters.__struct_fields__}
    return {key: value for key, value in filled.items() if value is not UNSET} | public(config)


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the notes of who wrote it."""
    return {key: value for key, value in config.items() if not key.startswith("_")}
