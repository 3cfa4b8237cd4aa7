"""What each configuration of a student may say, as data: types and ranges of every value that an export depends on.

Keys that no export reads are not looked at: hub configurations carry many. The scheduler's are few, and each of them moves the
samples: one that diffusers' scheduler does not know is a complaint.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec

from exporters.errors import Complaint
from exporters.student.classes import CLASS_KEY, CLASSES, component_class

LARGEST = 1 << 20
DEEPEST = 1 << 10
MOST_STEPS = 1000  # as many as schedulers have training timesteps
Layers = Annotated[int, msgspec.Meta(ge=1, le=DEEPEST)]  # each is a module: a million of them would take minutes and gigabytes
Count = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Index = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Scale = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]
Shift = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Levels = Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=16)]
Blocks = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=DEEPEST)], ...], msgspec.Meta(min_length=1, max_length=16)]
Activation = Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]


class _Transformer(msgspec.Struct):
    num_layers: Layers
    num_attention_heads: Count
    attention_head_dim: Count
    patch_size: Count
    in_channels: Count
    out_channels: Count | None
    joint_attention_dim: Count
    pooled_projection_dim: Count
    caption_projection_dim: Count
    pos_embed_max_size: Count
    sample_size: Count
    qk_norm: Literal["rms_norm"] | None
    dual_attention_layers: tuple[Index, ...]


class _Clip(msgspec.Struct):
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    max_position_embeddings: Count
    projection_dim: Count
    layer_norm_eps: Positive
    hidden_act: Activation
    eos_token_id: Index


class _T5(msgspec.Struct):
    vocab_size: Count
    d_model: Count
    d_kv: Count
    d_ff: Count
    num_layers: Layers
    num_heads: Count
    relative_attention_num_buckets: Count
    relative_attention_max_distance: Count
    layer_norm_epsilon: Positive
    dense_act_fn: Activation
    is_gated_act: bool


class _Vae(msgspec.Struct):
    in_channels: Count
    out_channels: Count
    latent_channels: Count
    block_out_channels: Levels
    layers_per_block: Layers
    norm_num_groups: Count
    scaling_factor: Scale
    shift_factor: Shift | None


class _TinyVae(msgspec.Struct):
    """The pipeline counts on pictures twice as large from level to level; Core ML has no other resizing."""

    in_channels: Literal[3]
    out_channels: Literal[3]
    latent_channels: Count
    encoder_block_out_channels: Levels
    decoder_block_out_channels: Levels
    block_out_channels: Levels
    num_encoder_blocks: Blocks
    num_decoder_blocks: Blocks
    act_fn: Literal["relu", "silu", "swish", "gelu"]
    upsample_fn: Literal["nearest"]
    upsampling_scaling_factor: Literal[2]
    scaling_factor: Scale
    shift_factor: Shift


class _Scheduler(msgspec.Struct):
    num_train_timesteps: Count = 1000
    shift: Positive = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: Count = 256
    max_image_seq_len: Count = 4096
    invert_sigmas: Literal[False] = False
    shift_terminal: Positive | None = None
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    stochastic_sampling: bool = False


class _DpmScheduler(msgspec.Struct):
    """DPM-Solver++ over a flow's noise levels; its betas are of another kind of model, and are not read."""

    prediction_type: Literal["flow_prediction"]
    use_flow_sigmas: Literal[True]
    num_train_timesteps: Count = 1000
    flow_shift: Positive = 1.0
    algorithm_type: Literal["dpmsolver++"] = "dpmsolver++"
    solver_order: Literal[1, 2, 3] = 2
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: Literal["zero"] = "zero"
    thresholding: Literal[False] = False
    use_dynamic_shifting: Literal[False] = False
    use_karras_sigmas: Literal[False] | None = False
    use_exponential_sigmas: Literal[False] | None = False
    use_beta_sigmas: Literal[False] | None = False
    use_lu_lambdas: Literal[False] | None = False


_SCHEMAS: dict[str, type[msgspec.Struct]] = {
    "CLIPTextModelWithProjection": _Clip,
    "T5EncoderModel": _T5,
    "SD3Transformer2DModel": _Transformer,
    "AutoencoderKL": _Vae,
    "AutoencoderTiny": _TinyVae,
    "FlowMatchEulerDiscreteScheduler": _Scheduler,
    "DPMSolverMultistepScheduler": _DpmScheduler,
}


def check_config(component: str, config: Mapping[str, Any]) -> list[Complaint]:
    """Every value that is missing, of another type or out of range.

    Args:
        component: whose configuration it is, or ``scheduler``.
        config: with the defaults of its class filled in.
    """
    name = component_class(component, config)
    required = {field.name for field in msgspec.structs.fields(_SCHEMAS[name]) if field.required}
    complaints = [Complaint(f"{component}: {key}", "missing") for key in sorted(required - config.keys())]
    complaints += check_values(component, config)
    return complaints or _FURTHER.get(name, lambda config: [])(config)


def check_class(component: str, config: Mapping[str, Any], listed: str = "") -> list[Complaint]:
    """Complain of a component of no class that it may be of, or of another than ``model_index.json`` lists.

    Args:
        component: whose configuration it is.
        config: as it is stored.
        listed: the class that ``model_index.json`` lists; empty where it was not asked.
    """
    allowed = (listed,) if listed else CLASSES[component]
    if (name := component_class(component, config)) in allowed:
        return []
    return [Complaint(f"{component}: {CLASS_KEY}", "is another class", " or ".join(allowed), name)]


def check_values(component: str, config: Mapping[str, Any]) -> list[Complaint]:
    """Every value that is of another type or out of range; what is missing may be a default of the class.

    Checked before a module is made of the configuration: a depth of a million would otherwise be made first.
    """
    complaints = []
    schema = _SCHEMAS[component_class(component, config)]
    for key, kind in get_type_hints(schema, include_extras=True).items():
        if key in config and not _fits(config[key], kind):
            complaints.append(Complaint(f"{component}: {key}", "wrong", _words(kind), repr(config[key])))
    return complaints


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)  # strict: a boolean is no number, a string neither
    except msgspec.ValidationError:
        return False
    return not isinstance(value, float) or math.isfinite(value)


def _words(kind: Any) -> str:
    """A type as people say it.

    >>> _words(Count), _words(Positive | None), _words(Literal["a", "b"])
    ('an integer from 1 to 1048576', 'a number above 0 or null', "'a' or 'b'")
    """
    named = {
        Count: f"an integer from 1 to {LARGEST}",
        Layers: f"an integer from 1 to {DEEPEST}",
        Index: f"an integer from 0 to {LARGEST}",
        Positive: "a number above 0",
        Scale: "a number from 1e-6 to 1e6",
        Shift: "a number from -1e6 to 1e6",
    }
    if kind in named:
        return named[kind]
    plain = {float: "a finite number", bool: "true or false", type(None): "null"}
    if kind in plain:
        return plain[kind]
    if getattr(kind, "__origin__", None) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if hasattr(kind, "__metadata__") or getattr(kind, "__origin__", None) is tuple:
        return "a list of integers"
    return " or ".join(_words(part) for part in get_args(kind))


def _transformer(config: Mapping[str, Any]) -> list[Complaint]:
    layers, dual = config["num_layers"], config["dual_attention_layers"]
    if any(index >= layers for index in dual):
        expected = f"below num_layers, {layers}"
        return [Complaint("transformer: dual_attention_layers", "names a layer that is not there", expected, str(list(dual)))]
    return []


def _clip(config: Mapping[str, Any]) -> list[Complaint]:
    complaints = []
    if config["eos_token_id"] >= config["vocab_size"]:
        expected = f"below vocab_size, {config['vocab_size']}"
        complaints.append(Complaint("text encoder: eos_token_id", "is no token", expected, str(config["eos_token_id"])))
    if config["hidden_size"] % config["num_attention_heads"]:
        got = f"{config['hidden_size']} and {config['num_attention_heads']}"
        complaints.append(Complaint("text encoder: hidden_size", "does not divide among the heads", "a multiple of them", got))
    return complaints


def _t5(config: Mapping[str, Any]) -> list[Complaint]:
    """Half of the buckets are for each direction, and half of those for distances that share one (logarithmically)."""
    exact = config["relative_attention_num_buckets"] // 4
    complaints = []
    if exact < 1:
        got = str(config["relative_attention_num_buckets"])
        complaints.append(Complaint("text_encoder_3: relative_attention_num_buckets", "too few", "at least 4", got))
    if config["relative_attention_max_distance"] <= exact:
        got = str(config["relative_attention_max_distance"])
        complaints.append(Complaint("text_encoder_3: relative_attention_max_distance", "too small", f"above {exact}", got))
    return complaints


def _tiny_vae(config: Mapping[str, Any]) -> list[Complaint]:
    """Its class takes widths that differ from level to level, and its forward pass then fails.

    The pipeline takes the size of the latents from ``block_out_channels``, which the class has from its decoder.
    """
    complaints = []
    for half in ("encoder", "decoder"):
        key, channels = f"{half}_block_out_channels", config[f"{half}_block_out_channels"]
        if len(set(channels)) > 1:
            complaints.append(Complaint(f"vae: {key}", "differ from level to level", "one width", str(list(channels))))
    decoder = config["decoder_block_out_channels"]
    if len(config["encoder_block_out_channels"]) != len(decoder):
        got = str(len(config["encoder_block_out_channels"]))
        complaints.append(
            Complaint("vae: encoder_block_out_channels", "not as many levels as the decoder", str(len(decoder)), got)
        )
    if list(config["block_out_channels"]) != list(decoder):
        got = str(list(config["block_out_channels"]))
        complaints.append(Complaint("vae: block_out_channels", "differ from decoder_block_out_channels", str(list(decoder)), got))
    return complaints


def _scheduler(config: Mapping[str, Any]) -> list[Complaint]:
    complaints = _unknown(config)
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    if low >= high:
        complaints.append(Complaint("scheduler: max_image_seq_len", "wrong", f"above base_image_seq_len, {low}", str(high)))
    return complaints


def _unknown(config: Mapping[str, Any]) -> list[Complaint]:
    """Keys that diffusers' scheduler does not know either: it has more parameters than are listed here."""
    name = component_class("scheduler", config)
    keys = {key for key in config if not key.startswith("_")} - set(_SCHEMAS[name].__struct_fields__)
    if not keys:
        return []
    import diffusers

    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    return [Complaint(f"scheduler: {key}", "unknown key", f"a parameter of {name}") for key in sorted(keys - set(known))]


_FURTHER: dict[str, Callable[[Mapping[str, Any]], list[Complaint]]] = {
    "SD3Transformer2DModel": _transformer,
    "CLIPTextModelWithProjection": _clip,
    "T5EncoderModel": _t5,
    "AutoencoderTiny": _tiny_vae,
    "FlowMatchEulerDiscreteScheduler": _scheduler,
    "DPMSolverMultistepScheduler": _unknown,
}
