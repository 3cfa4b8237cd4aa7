"""Every style of file, against the plain formula in fp64; and against diffusers and PEFT where these read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from distillation.random_students import PRESETS, make_student
from exporters.reference.decibels import snr_db
from exporters.reference.diffusers import reference_component, reference_pipeline
from exporters.student.open import open_student
from exporters.student.student import Student
from tests.helpers import lora_files as files
from tests.helpers import original_layout as original
from tests.helpers.original_layout import _BLOCK, _QKV, _TOP

RANK, ALPHA = 4, 8.0
#: fp32 sums of five terms: each rounds by at most 2^-24 of the largest, which is 5 * 6e-8, or 130 dB.
REQUIRED_DB = 130.0


def style_diffusers(made: files.Products, folder: Path) -> Path:
    return files.write(folder / "x.safetensors", files.diffusers(made))


def style_diffusers_alpha(made: files.Products, folder: Path) -> Path:
    tensors = files.diffusers(made)
    tensors |= {name.replace("lora_A.weight", "alpha"): np.array([ALPHA]) for name in tensors if "lora_A" in name}
    return files.write(folder / "x.safetensors", tensors)


def style_adapter_name(made: files.Products, folder: Path) -> Path:
    return files.write(folder / "x.safetensors", files.diffusers(made, halves=("lora_A.default_0", "lora_B.default_0")))


def style_old(made: files.Products, folder: Path) -> Path:
    return files.write(folder / "x.safetensors", files.diffusers(made, halves=("lora.down", "lora.up")))


def style_linear_layer(made: files.Products, folder: Path) -> Path:
    return files.write(folder / "x.safetensors", files.diffusers(made, halves=("lora_linear_layer.down", "lora_linear_layer.up")))


def style_kohya(made: files.Products, folder: Path) -> Path:
    return files.write(folder / "x.safetensors", files.kohya(made, ALPHA))


def style_rank_as_whole_number(made: files.Products, folder: Path) -> Path:
    tensors = files.kohya(made, ALPHA)
    return files.write(folder / "x.safetensors", {n: np.int64(v) if n.endswith("alpha") else v for n, v in tensors.items()})


def style_without_text_model(made: files.Products, folder: Path) -> Path:
    tensors = {name.replace("text_model.", ""): value for name, value in files.diffusers(made).items()}
    return files.write(folder / "x.safetensors", tensors)


def style_comfy(made: files.Products, folder: Path) -> Path:
    long = {
        "transformer.": "diffusion_model.",
        "text_encoder.": "text_encoders.clip_l.transformer.",
        "text_encoder_2.": "text_encoders.clip_g.transformer.",
        "text_encoder_3.": "text_encoders.t5xxl.transformer.",
    }
    tensors = files.diffusers(made)
    for short, prefix in long.items():
        tensors = {prefix + n.removeprefix(short) if n.startswith(short) else n: v for n, v in tensors.items()}
    return files.write(folder / "x.safetensors", tensors)


STYLES: dict[str, tuple[Callable[[files.Products, Path], Path], float]] = {
    "diffusers": (style_diffusers, 1.0),
    "diffusers with alpha": (style_diffusers_alpha, ALPHA / RANK),
    "with the adapter's name": (style_adapter_name, 1.0),
    "lora.down": (style_old, 1.0),
    "lora_linear_layer.down": (style_linear_layer, 1.0),
    "kohya with diffusers' names": (style_kohya, ALPHA / RANK),
    "alpha as a whole number": (style_rank_as_whole_number, ALPHA / RANK),
    "encoders without text_model": (style_without_text_model, 1.0),
    "ComfyUI's prefixes": (style_comfy, 1.0),
}


def check(got: Student, plain: Student, wanted: Mapping[tuple[str, str], np.ndarray]) -> None:
    """Changed weights are as they should be, and all others as they were, to the last bit."""
    for component, weights in plain.weights.items():
        for name, weight in weights.items():
            now = got.weights[component][name]
            if (component, name) in wanted:
                assert (now.dtype, now.load().dtype, now.shape) == (np.float32, np.float32, weight.shape)
                assert snr_db(weight.load(), now.load()) < 40, f"{name} was not changed"
                assert snr_db(wanted[component, name], now.load(), name) >= REQUIRED_DB
            else:
                assert now is weight or np.array_equal(now.load(), weight.load()), name


@pytest.mark.parametrize(("style", "factor"), STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("scale", [1.0, -0.125])
def test_a_style(style, factor: float, scale: float, students: dict[str, Student], tmp_path: Path) -> None:
    plain = students["tiny"]
    made = files.products(plain, rank=RANK)
    file = style(made, tmp_path)
    opened = open_student(plain.path, lora=[f"{file}:{scale}"])
    check(opened, plain, files.expected(plain, made, lambda rank: scale * factor))
    assert opened.notes[-1] == (
        f"LoRA merged: x.safetensors, scale {scale:g}, layers: 11 of transformer, 2 of text_encoder, 2 of text_encoder_2, "
        "2 of text_encoder_3, rank 4"
    )


def test_attention_processors_names(students: dict[str, Student], tmp_path: Path) -> None:
    """``attn.processor.to_q_lora.down``, and ``to_out`` for ``to_out.0``."""
    plain, tensors = students["tiny"], {}
    made = {key: its for key, its in files.products(plain, "transformer").items() if ".attn.to_" in key[1]}
    for (_, module), its in made.items():
        block, part = module.removesuffix(".0").rsplit(".", 1)
        name = f"transformer.{block}.processor.{part}_lora"
        tensors |= {f"{name}.down.weight": its.down, f"{name}.up.weight": its.up}
    check(open_student(plain.path, lora=[files.write(tmp_path / "x.safetensors", tensors)]), plain, files.expected(plain, made))


def test_text_encoders_old_names(students: dict[str, Student], tmp_path: Path) -> None:
    plain = students["tiny"]
    made = {key: its for key, its in files.products(plain, "text_encoder", "text_encoder_2").items() if "self_attn" in key[1]}
    tensors = {
        name.replace("q_proj.lora.", "to_q_lora.").replace("out_proj.lora.", "to_out_lora."): value
        for name, value in files.diffusers(made, halves=("lora.down", "lora.up")).items()
    }
    assert all("_lora.down" in name or "_lora.up" in name for name in tensors)
    check(open_student(plain.path, lora=[files.write(tmp_path / "x.safetensors", tensors)]), plain, files.expected(plain, made))


def original_module(module: str) -> str:
    """The original name of a module that is one there too."""
    if module in _TOP:
        return _TOP[module]
    _, index, part = module.split(".", 2)
    return f"joint_blocks.{index}.{_BLOCK[part]}"


def swap(array: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(array, 2)[::-1])


@pytest.mark.parametrize("dotted", [False, True], ids=["kohya", "ComfyUI"])
def test_original_names(dotted: bool, students: dict[str, Student], tmp_path: Path) -> None:
    """Every original module of the MMDiT: fused ones are split, and norms that have shift before scale there are turned round."""
    plain, rng, tensors = students["tiny"], np.random.default_rng(1), {}
    shapes = {name.removesuffix(".weight"): w.shape for name, w in plain.weights["transformer"].items() if len(w.shape) > 1}
    last = f"transformer_blocks.{plain.configs['transformer']['num_layers'] - 1}.norm1_context.linear"
    wanted: dict[tuple[str, str], np.ndarray] = {}

    def add(there: str, down: np.ndarray, up: np.ndarray) -> None:
        name = f"diffusion_model.{there}" if dotted else f"lora_unet_{there.replace('.', '_')}"
        halves = ("lora_A", "lora_B") if dotted else ("lora_down", "lora_up")
        tensors.update({f"{name}.{halves[0]}.weight": down, f"{name}.{halves[1]}.weight": up})
        tensors[f"{name}.alpha"] = np.array(2.0, np.float32)

    def want(module: str, its: files.Halves) -> None:
        wanted.update(files.expected(plain, {("transformer", module): its}, lambda rank: 2.0 / rank))

    fused = {f"transformer_blocks.{i}.{part}" for i in range(3) for parts in _QKV.values() for part in parts}
    for module in sorted(shapes.keys() - fused - {"pos_embed.pos_embed"}):
        if module == "pos_embed":
            continue
        its = files.halves(plain, "transformer", module, 3, rng)
        add(original_module(module), its.down, swap(its.up) if module in (last, "norm_out.linear") else its.up)
        want(module, its)
    for i in range(3):
        for fused_name, parts in _QKV.items():
            names = [f"transformer_blocks.{i}.{part}" for part in parts]
            if names[0] not in shapes:
                continue
            made = [files.halves(plain, "transformer", name, 6, rng) for name in names]
            add(f"joint_blocks.{i}.{fused_name}", made[0].down, np.concatenate([one.up for one in made]))
            for name, one in zip(names, made, strict=True):  # one down half for all three
                want(name, files.Halves(made[0].down, one.up))
    opened = open_student(plain.path, lora=[files.write(tmp_path / "x.safetensors", tensors)])
    check(opened, plain, wanted)
    changed = {name.removesuffix(".weight") for _, name in wanted}
    assert changed == shapes.keys() - {"pos_embed", "pos_embed.pos_embed"}  # all that a LoRA can change, the convolution too


def test_split_queries_keys_and_values_by_number(students: dict[str, Student], tmp_path: Path) -> None:
    plain, rng, tensors = students["tiny"], np.random.default_rng(1), {}
    module = "transformer_blocks.1.attn.to_k"
    its = files.halves(plain, "transformer", module, 3, rng)
    name = "lora_transformer_joint_blocks_1_x_block_attn_qkv_1"
    tensors = {f"{name}.lora_down.weight": its.down, f"{name}.lora_up.weight": its.up}
    opened = open_student(plain.path, lora=[files.write(tmp_path / "x.safetensors", tensors)])
    check(opened, plain, files.expected(plain, {("transformer", module): its}))


def run_transformer(module: Any) -> np.ndarray:
    generator, config = torch.Generator().manual_seed(0), module.config
    with torch.no_grad():
        out = module(
            hidden_states=torch.randn(1, config.in_channels, 16, 16, generator=generator),
            encoder_hidden_states=torch.randn(1, 12, config.joint_attention_dim, generator=generator),
            pooled_projections=torch.randn(1, config.pooled_projection_dim, generator=generator),
            timestep=torch.tensor([500.0]),
        )
    result: np.ndarray = out.sample.numpy()
    return result


def plain_state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def check_module(got: Student, component: str, module: Any) -> None:
    """Weights against those of a module that diffusers or PEFT merged, and for the transformer its output."""
    for name, value in plain_state(module).items():
        if name in got.weights[component]:
            now: np.ndarray = got.weights[component][name].load()
            db = snr_db(value, now.astype(np.float32), name)
            assert db >= REQUIRED_DB, f"{name}: {db} dB"
    if component == "transformer":
        db = snr_db(run_transformer(module), run_transformer(reference_component(got, component)))
        assert db >= 100.0


def metadata(**config: object) -> dict[str, str]:
    """As diffusers' ``save_lora_weights`` writes it for the transformer."""
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}


FUSED: dict[str, tuple[tuple[str, ...], dict[str, str] | None, str]] = {
    "transformer and CLIPs": (("transformer", "text_encoder", "text_encoder_2"), None, "lora_A"),
    "lora.down": (("transformer",), None, "lora.down"),
    "metadata": (
        ("transformer",),
        metadata(
            r=4,
            lora_alpha=16,
            alpha_pattern={"proj_out": 2, "transformer_blocks.0.attn.to_q": 3},
            target_modules=list(files.MODULES["transformer"]),
        ),
        "lora_A",
    ),
    "metadata with rslora": (
        ("transformer",),
        metadata(r=4, lora_alpha=6, use_rslora=True, target_modules=list(files.MODULES["transformer"])),
        "lora_A",
    ),
}


@pytest.mark.parametrize("case", FUSED, ids=FUSED)
def test_diffusers_fuses_the_same(case: str, students: dict[str, Student], tmp_path: Path) -> None:
    components, head, down = FUSED[case]
    plain = students["tiny"]
    made = files.products(plain, *components)
    file = files.write(
        tmp_path / "x.safetensors", files.diffusers(made, halves=(down, "lora.up" if "." in down else "lora_B")), head
    )
    pipeline = reference_pipeline(plain, keep_t5=False)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.fuse_lora(components=list(components), lora_scale=0.5)
    pipeline.unload_lora_weights()
    opened = open_student(plain.path, lora=[f"{file}:0.5"])
    assert opened.loras[0].layers == {c: sum(1 for component, _ in made if component == c) for c in components}
    for component in components:
        check_module(opened, component, getattr(pipeline, component))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")  # PEFT's, of any second adapter
def test_diffusers_fuses_two_in_order(students: dict[str, Student], tmp_path: Path) -> None:
    plain, pipeline = students["tiny"], reference_pipeline(students["tiny"], keep_t5=False)
    given = []
    for i, scale in enumerate((0.75, -0.5)):
        made = files.products(plain, "transformer", rank=2 + i, seed=i)
        file = files.write(tmp_path / f"{i}.safetensors", files.diffusers(made))
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"a{i}")
        given.append(f"{file}:{scale}")
    pipeline.set_adapters(["a0", "a1"], [0.75, -0.5])
    pipeline.fuse_lora(components=["transformer"], adapter_names=["a0", "a1"])
    pipeline.unload_lora_weights()
    check_module(open_student(plain.path, lora=given), "transformer", pipeline.transformer)


def trained(component: str, student: Student, **config: object) -> Any:
    """A PEFT model of a component, its adapter random."""
    import peft

    torch.manual_seed(0)
    model = peft.get_peft_model(reference_component(student, component), peft.LoraConfig(**config))
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = value.data.abs() * 1.5 if "magnitude" in name else torch.randn_like(value) * 0.2
    return model


LINEAR = ["to_q", "to_k", "add_v_proj", "proj_out", "ff.net.2"]
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("transformer", {"r": 4, "lora_alpha": 2, "target_modules": LINEAR}),
    "patterns": (
        "transformer",
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": LINEAR,
            "rank_pattern": {"to_q": 2, r"transformer_blocks\.1\.attn\.to_k": 3},
            "alpha_pattern": {r"transformer_blocks\.[01]\..*to_q": 5},
        },
    ),
    "rslora": ("transformer", {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "use_rslora": True}),
    "DoRA": ("transformer", {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "use_dora": True}),
    "convolution": ("transformer", {"r": 4, "lora_alpha": 6, "target_modules": ["pos_embed.proj"]}),
    "DoRA of a convolution": ("transformer", {"r": 4, "lora_alpha": 6, "target_modules": ["pos_embed.proj"], "use_dora": True}),
    "bias": ("transformer", {"r": 4, "lora_alpha": 6, "target_modules": ["proj_out", "to_q"], "lora_bias": True}),
    "text_encoder_2": ("text_encoder_2", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "fc2", "text_projection"]}),
    "text_encoder_3": ("text_encoder_3", {"r": 4, "lora_alpha": 6, "target_modules": ["q", "wo"], "use_dora": True}),
}


@pytest.mark.filterwarnings("ignore:.*have invalid shape")  # PEFT 0.21 takes the bias of a half for a half that is torn
@pytest.mark.parametrize(("component", "config"), TRAINED.values(), ids=TRAINED)
def test_peft_merges_the_same(component: str, config: dict[str, Any], students: dict[str, Student], tmp_path: Path) -> None:
    plain, folder = students["tiny"], tmp_path / component
    model = trained(component, plain, **config)
    model.save_pretrained(folder)
    opened = open_student(plain.path, lora=[folder])
    assert opened.loras[0].name == f"{component}/adapter_model.safetensors"
    assert set(opened.loras[0].layers) == {component}
    check_module(opened, component, model.merge_and_unload())


def test_a_dora_of_diffusers_names_and_of_kohyas(students: dict[str, Student], tmp_path: Path) -> None:
    plain, rng = students["tiny"], np.random.default_rng(0)
    made = files.products(plain, "transformer")
    lengths = {module: rng.uniform(0.5, 2, (len(its.up),)).astype(np.float32) for (_, module), its in made.items()}
    wanted = {}
    for (component, name), value in files.expected(plain, made, lambda rank: 2.0 * 3.0 / rank).items():
        norms = np.linalg.norm(value, axis=1, keepdims=True)
        wanted[component, name] = value / norms * lengths[name.removesuffix(".weight")][:, None]
    diffusers = files.diffusers(made) | {f"transformer.{m}.lora_magnitude_vector": v for m, v in lengths.items()}
    diffusers |= {f"transformer.{module}.alpha": np.array(3.0, np.float32) for module in lengths}
    kohya = files.kohya(made, 3.0)
    kohya |= {f"lora_unet_{module.replace('.', '_')}.dora_scale": value[:, None] for module, value in lengths.items()}
    for i, tensors in enumerate((diffusers, kohya)):
        file = files.write(tmp_path / f"{i}.safetensors", tensors)
        check(open_student(plain.path, lora=[f"{file}:2"]), plain, wanted)


def test_it_is_merged_in_fp32_whatever_is_stored(students: dict[str, Student], tmp_path: Path) -> None:
    """A student and a LoRA in half precision: the sum has more digits than either."""
    plain = students["all dual, bf16"]
    module = "transformer_blocks.0.attn.to_q"
    weight = plain.weights["transformer"][f"{module}.weight"]
    assert weight.dtype == ml_dtypes.bfloat16
    its = files.halves(plain, "transformer", module, 4, np.random.default_rng(0))
    halves = files.Halves(its.down.astype(np.float16), (its.up * 0.01).astype(np.float16))
    file = files.write(tmp_path / "x.safetensors", files.diffusers({("transformer", module): halves}))
    got = open_student(plain.path, lora=[file]).weights["transformer"][f"{module}.weight"]
    wanted = files.expected(plain, {("transformer", module): halves})["transformer", f"{module}.weight"]
    assert got.dtype == np.float32
    assert snr_db(wanted, got.load()) >= REQUIRED_DB
    assert snr_db(wanted, got.load().astype(ml_dtypes.bfloat16)) < 60  # what would be lost otherwise


def test_a_single_file_student(students: dict[str, Student], tmp_path: Path) -> None:
    """Its weights are made of rows of others, and are merged under the names that they come to have."""
    shape = replace(PRESETS["tiny"], heads=1, head_dim=64)  # a single file's configuration can be inferred for these
    plain = open_student(make_student(shape, tmp_path / "s"))
    made = files.products(plain, "transformer")
    file = files.write(tmp_path / "x.safetensors", files.diffusers(made))
    shutil.rmtree(plain.path / "transformer")
    single = original.write(plain.path / "sd3.safetensors", original.transformer(plain))
    opened = open_student(single, lora=[file])
    check(opened, open_student(single), files.expected(open_student(single), made))
