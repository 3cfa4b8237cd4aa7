"""The formulas against the classes of diffusers and transformers, made on the meta device."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.random_students import PRESETS, configs_of
from exporters.errors import StudentError
from exporters.student.classes import CLASS_KEY
from exporters.student.configs import Activation
from exporters.student.student import BUILTIN_STUDENT
from exporters.student.weights import shapes, templates
from exporters.student.weights.parameters import Parameters, covered
from exporters.student.weights.templates import class_config, expected_shapes, resolve_config
from tests.conftest import SHAPES
from tests.exporters.student.hub_configs import HUB_CONFIGS

Config = dict[str, Any]
COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
# What T5's class sets whatever is stored, what transformers calls by another name or writes itself. No export reads them.
CLASS_SETS = {
    "is_encoder_decoder",
    "model_type",
    "num_decoder_layers",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def builtin(component: str) -> Config:
    return json.loads((BUILTIN_STUDENT / component / "config.json").read_text())


CONFIGS: dict[str, tuple[str, Config]] = {
    **{f"built-in {component}": (component, builtin(component)) for component in COMPONENTS},
    **{
        f"{name} {component}": (component, config)
        for name, shape in (SHAPES | PRESETS).items()
        for component, config in configs_of(shape).items()
    },
    **HUB_CONFIGS,
    **{f"defaults of {component}": (component, {}) for component in COMPONENTS},
    "defaults of tiny vae": ("vae", {CLASS_KEY: "AutoencoderTiny"}),
}
CLIP = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
T5 = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 3, "vocab_size": 50}
MMDIT = {"num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12, "pos_embed_max_size": 4}
VAE = {
    "block_out_channels": [8, 16, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
TINY_VAE = {
    CLASS_KEY: "AutoencoderTiny",
    "encoder_block_out_channels": [5, 5, 5],
    "decoder_block_out_channels": [7, 7, 7],
    "num_encoder_blocks": [1, 0, 2],
    "num_decoder_blocks": [2, 0, 1],
}
SMALL = {
    "text_encoder": CLIP,
    "text_encoder_2": CLIP,
    "text_encoder_3": T5,
    "transformer": MMDIT,
    "vae": VAE,
    "tiny vae": TINY_VAE,
}
# Of each class, each key that is covered with values beside those of SMALL and beside the default.
VARIATIONS: dict[str, dict[str, list[Any]]] = {
    "text_encoder": {
        "vocab_size": [1, 700],
        "hidden_size": [2, 30],
        "intermediate_size": [1, 99],
        "projection_dim": [1, 30],
        "num_hidden_layers": [1, 12],
        "num_attention_heads": [1, 24],
        "max_position_embeddings": [1, 20],
        "hidden_act": list(get_args(Activation)),
        "layer_norm_eps": [1e-6],
        "eos_token_id": [2],
        "bos_token_id": [None, 0],
        "pad_token_id": [None, 0, 1],
        "attention_dropout": [0.0, 1.0],
        "dropout": [0.1],
        "initializer_range": [0.1],
        "initializer_factor": [0.5],
        "architectures": [None, ["CLIPTextModel"]],
        "model_type": ["clip", "clip_text_model"],
        "dtype": [None, "float16", "bfloat16", "float32"],
        "torch_dtype": [None, "float16", "bfloat16", "float32"],
        "transformers_version": [None, "4.41.2"],
    },
    "text_encoder_3": {
        "vocab_size": [1],
        "d_model": [5],
        "d_kv": [1],
        "d_ff": [1],
        "num_layers": [1, 12],
        "num_heads": [1],
        "relative_attention_num_buckets": [4],
        "relative_attention_max_distance": [20],
        "layer_norm_epsilon": [1e-5],
        "feed_forward_proj": [prefix + act for act in get_args(Activation) for prefix in ("", "gated-")],
        "dense_act_fn": ["silu"],
        "is_gated_act": [True, False],
        "is_decoder": [False],
        "num_decoder_layers": [None, 1],
        "decoder_start_token_id": [0],
        "eos_token_id": [None, 2],
        "pad_token_id": [None, 3],
        "dropout_rate": [0.0, 1.0],
        "classifier_dropout": [0.5],
        "initializer_factor": [0.5],
        "is_encoder_decoder": [True, False],
        "n_positions": [512],
        "output_past": [True],
        "scale_decoder_outputs": [True, False],
        "tie_word_embeddings": [True, False],
        "use_cache": [True, False],
        "architectures": [None],
        "model_type": ["t5"],
        "dtype": ["bfloat16"],
        "torch_dtype": ["bfloat16"],
        "transformers_version": [None],
    },
    "transformer": {
        "sample_size": [2, 64],
        "patch_size": [1, 4],
        "in_channels": [1, 5],
        "num_layers": [1, 5],
        "attention_head_dim": [2, 32],
        "num_attention_heads": [4],
        "joint_attention_dim": [1],
        "caption_projection_dim": [1, 16],
        "pooled_projection_dim": [1],
        "out_channels": [None, 5],
        "pos_embed_max_size": [1, 9],
        "dual_attention_layers": [[], [0], [2], [0, 1, 2], [1, 7]],
        "qk_norm": [None, "rms_norm"],
    },
    "vae": {
        "in_channels": [1, 4],
        "out_channels": [1, 4],
        "block_out_channels": [[4, 4, 4], [16, 8, 4]],
        "down_block_types": [["DownEncoderBlock2D"] * 3],
        "up_block_types": [["UpDecoderBlock2D"] * 3],
        "layers_per_block": [2, 3],
        "act_fn": ["silu"],
        "latent_channels": [1, 16],
        "norm_num_groups": [1, 8],
        "sample_size": [1, 512],
        "scaling_factor": [1.0],
        "shift_factor": [0.5],
        "latents_mean": [[0.0]],
        "latents_std": [[1.0]],
        "force_upcast": [False],
        "use_quant_conv": [True, False],
        "use_post_quant_conv": [True, False],
        "mid_block_add_attention": [True, False],
    },
    "tiny vae": {
        "in_channels": [1],
        "out_channels": [4],
        "encoder_block_out_channels": [[1, 1, 1], [64, 64, 64]],
        "decoder_block_out_channels": [[1, 1, 1]],
        "block_out_channels": [[7, 7, 7], [9]],
        "num_encoder_blocks": [[0, 0, 0], [3, 3, 1]],
        "num_decoder_blocks": [[0, 0, 0], [1, 3, 3]],
        "act_fn": ["relu", "silu", "swish", "gelu"],
        "upsample_fn": ["bilinear"],
        "latent_channels": [1, 16],
        "upsampling_scaling_factor": [1, 3],
        "latent_magnitude": [2],
        "latent_shift": [0.25],
        "scaling_factor": [1.5305],
        "shift_factor": [0.0609],
        "force_upcast": [False],
    },
}
VARIED = [(component, {key: value}) for component, keys in VARIATIONS.items() for key, values in keys.items() for value in values]


def by_class(component: str, config: Config) -> list[tuple[str, tuple[int, ...]]]:
    return list(templates._by_class(component, json.dumps(config, sort_keys=True))[0].items())


def check(component: str, config: Config) -> None:
    """By formula: the tensors of the class in its order, its values, and what it makes of the resolved values is the same."""
    assert covered(component, config) is not None
    assert list(expected_shapes(component, config).items()) == by_class(component, config)
    resolved, written = resolve_config(component, config), class_config(component, config)
    compared = resolved.keys() - CLASS_SETS - {CLASS_KEY}
    assert as_json({key: written[key] for key in compared}) == as_json({key: resolved[key] for key in compared})
    assert resolved.get(CLASS_KEY) == config.get(CLASS_KEY)
    assert covered(component, resolved) is not None
    assert as_json(class_config(component, resolved)) == as_json(written)


def as_json(config: Config) -> Config:
    """As a file would hold it, without diffusers' list of the keys that it filled in."""
    return json.loads(json.dumps({key: value for key, value in config.items() if key != "_use_default_values"}))


@pytest.mark.parametrize(("component", "config"), CONFIGS.values(), ids=CONFIGS)
def test_formulas_are_the_classes(component: str, config: Config) -> None:
    check(component, config)


@pytest.mark.parametrize(("component", "changes"), VARIED, ids=str)
def test_each_key_is_as_the_class_has_it(component: str, changes: Config) -> None:
    check(component.removeprefix("tiny "), SMALL[component] | changes)


@pytest.mark.parametrize("component", VARIATIONS)
def test_every_covered_key_is_varied(component: str) -> None:
    parameters = covered(component.removeprefix("tiny "), SMALL[component])
    assert parameters is not None
    assert set(VARIATIONS[component]) == set(parameters.__struct_fields__)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_transformer(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 4))
    config = {
        "num_layers": layers,
        "attention_head_dim": data.draw(st.sampled_from([4, 8, 20])),
        "num_attention_heads": data.draw(st.integers(1, 4)),
        "dual_attention_layers": data.draw(st.lists(st.integers(0, layers), max_size=4)),
        "qk_norm": data.draw(st.sampled_from([None, "rms_norm"])),
        "out_channels": data.draw(st.none() | st.integers(1, 9)),
        **{
            key: data.draw(st.integers(1, 9))
            for key in ("patch_size", "in_channels", "joint_attention_dim", "caption_projection_dim", "pos_embed_max_size")
        },
    }
    check("transformer", config)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_vae(data: st.DataObject) -> None:
    groups, levels = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    config = {
        "norm_num_groups": groups,
        "block_out_channels": [groups * data.draw(st.integers(1, 3)) for _ in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **{key: data.draw(st.integers(1, 3)) for key in ("layers_per_block", "latent_channels", "in_channels", "out_channels")},
        **{key: data.draw(st.booleans()) for key in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")},
    }
    check("vae", config)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_tiny_vae(data: st.DataObject) -> None:
    levels = data.draw(st.integers(1, 4))
    config: Config = {CLASS_KEY: "AutoencoderTiny", "latent_channels": data.draw(st.integers(1, 3))}
    for half in ("encoder", "decoder"):
        config[f"{half}_block_out_channels"] = [data.draw(st.integers(1, 9))] * levels
        config[f"num_{half}_blocks"] = data.draw(st.lists(st.integers(0, 3), min_size=levels, max_size=levels))
    check("vae", config)


NOT_COVERED: dict[str, tuple[str, Config]] = {
    "a key of no class": ("vae", {"surprise": 1}),
    "another activation": ("vae", {"act_fn": "mish"}),
    "attention in the levels": (
        "vae",
        {"down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
    ),
    "more channels than blocks": ("vae", {"block_out_channels": [8, 16, 16, 16]}),
    "a size for each axis": ("vae", {"sample_size": [64, 64]}),
    "widths that differ": ("tiny vae", {"decoder_block_out_channels": [7, 7, 9]}),
    "an activation that few have": ("tiny vae", {"act_fn": "mish"}),
    "a key of the other class": ("tiny vae", {"norm_num_groups": 4}),
    "another norm": ("transformer", {"qk_norm": "layer_norm"}),
    "a decoder": ("text_encoder_3", {"is_decoder": True}),
    "an alias": ("text_encoder_3", {"hidden_size": 30}),
    "a key of newer versions": ("text_encoder", {"chunk_size_feed_forward": 0}),
    "whole for a fraction that may be whole": ("text_encoder", {"attention_dropout": 0}),
    "several ends": ("text_encoder", {"eos_token_id": [1, 2]}),
}


@pytest.mark.parametrize(("component", "changes"), NOT_COVERED.values(), ids=NOT_COVERED)
def test_of_what_is_not_covered_the_class_is_asked(component: str, changes: Config) -> None:
    config, component = SMALL[component] | changes, component.removeprefix("tiny ")
    assert covered(component, config) is None
    assert list(expected_shapes(component, config).items()) == by_class(component, config)
    kind = {CLASS_KEY: config[CLASS_KEY]} if CLASS_KEY in config else {}
    assert resolve_config(component, config) == class_config(component, config) | kind


REFUSED: dict[str, tuple[str, Config, str]] = {
    "width and heads": ("text_encoder", {"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
    "whole for a fraction": ("text_encoder", {"layer_norm_eps": 1}, "layer_norm_eps"),
    "a fraction": ("text_encoder", {"hidden_size": 24.0}, "hidden_size"),
    "true for a number": ("text_encoder_3", {"num_layers": True}, "num_layers"),
    "no projection": ("text_encoder", {"projection_dim": None}, "TypeError"),
    "no such type": ("text_encoder", {"torch_dtype": "float17"}, "float17"),
    "a share of two": ("text_encoder_3", {"dropout_rate": 2.0}, "dropout"),
    "no such activation": ("text_encoder_3", {"feed_forward_proj": "a-b"}, "feed_forward_proj"),
    "odd positions": ("transformer", {"attention_head_dim": 3}, "divisible by 2"),
    "a sample below a patch": ("transformer", {"sample_size": 1}, "ZeroDivisionError"),
    "beyond torch": ("transformer", {"patch_size": 1 << 20, "sample_size": 1 << 20, "in_channels": 1 << 20}, "RuntimeError"),
    "groups": ("vae", {"norm_num_groups": 3}, "num_channels"),
    "more blocks than channels": ("vae", {"block_out_channels": [8, 16]}, "IndexError"),
    "levels without blocks": ("tiny vae", {"num_decoder_blocks": [1, 1]}, "same length as `num_decoder_blocks`"),
}


@pytest.mark.parametrize(("component", "changes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_the_class_refuses_is_refused_in_its_words(component: str, changes: Config, said: str) -> None:
    config, component = SMALL[component] | changes, component.removeprefix("tiny ")
    for ask in (expected_shapes, resolve_config):
        with pytest.raises(StudentError, match=rf"{component}: config.json: [\s\S]*{said}"):
            ask(component, config)


def shuffled(parameters: Parameters) -> shapes.Shapes:
    return dict(reversed(shapes.tensor_shapes(parameters).items()))


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "tensor_shapes", shuffled)
    with pytest.raises(AssertionError):
        check("vae", VAE)
    monkeypatch.undo()
    monkeypatch.setattr(shapes, "_TIMESTEP_FEATURES", 128)
    with pytest.raises(AssertionError):
        check("transformer", MMDIT)
    monkeypatch.undo()
    monkeypatch.setattr(templates, "resolved", lambda parameters, config: config | {"in_channels": 7})
    with pytest.raises(AssertionError):
        check("transformer", MMDIT)
