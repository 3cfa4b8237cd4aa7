"""LoRAs of random numbers for a student, written in the styles that are about."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from exporters.student.student import Student

Arrays = dict[str, np.ndarray]
MODULES = {
    "transformer": (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_k",
        "transformer_blocks.0.attn.to_v",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.attn2.to_k",
        "transformer_blocks.1.attn.add_v_proj",
        "transformer_blocks.1.ff_context.net.2",
        "transformer_blocks.2.norm1_context.linear",
        "time_text_embed.text_embedder.linear_2",
        "norm_out.linear",
        "proj_out",
    ),
    "text_encoder": ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.2.mlp.fc1"),
    "text_encoder_2": ("text_model.encoder.layers.1.self_attn.out_proj", "text_projection"),
    "text_encoder_3": ("encoder.block.0.layer.0.SelfAttention.o", "encoder.block.1.layer.1.DenseReluDense.wo"),
}
"""What is changed, by diffusers' names (transformers' in the encoders)."""
KOHYA = {"transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"}


@dataclass(frozen=True)
class Halves:
    """The product of one module, ``up @ down``."""

    down: np.ndarray
    up: np.ndarray

    @property
    def rank(self) -> int:
        return len(self.down)

    def product(self) -> np.ndarray:
        """In fp64, ``[outputs, inputs]``."""
        flat = self.down.astype(np.float64).reshape(self.rank, -1)
        result: np.ndarray = self.up.astype(np.float64).reshape(-1, self.rank) @ flat
        return result


Products = dict[tuple[str, str], Halves]


def products(student: Student, *components: str, rank: int = 4, seed: int = 0) -> Products:
    """Halves for the modules of some components, all by default; each product is about as large as what it is added to."""
    rng = np.random.default_rng(seed)
    made = {}
    for component in components or MODULES:
        for module in MODULES[component]:
            made[component, module] = halves(student, component, module, rank, rng)
    return made


def halves(student: Student, component: str, module: str, rank: int, rng: np.random.Generator) -> Halves:
    shape = student.weights[component][f"{module}.weight"].shape
    down = rng.standard_normal((rank, *shape[1:]), np.float32) * np.float32(0.1)
    up = rng.standard_normal((shape[0], rank, *[1] * (len(shape) - 2)), np.float32) * np.float32(0.5 / rank)
    return Halves(down, up)


def expected(
    student: Student, made: Products, factor: Callable[[int], float] = lambda rank: 1.0
) -> Mapping[tuple[str, str], np.ndarray]:
    """``W + factor(rank) * B @ A`` in fp64."""
    sums = {}
    for (component, module), its in made.items():
        weight = student.weights[component][f"{module}.weight"].load().astype(np.float64)
        sums[component, f"{module}.weight"] = weight + factor(its.rank) * its.product().reshape(weight.shape)
    return sums


def diffusers(made: Products, prefix: str | None = None, halves: tuple[str, str] = ("lora_A", "lora_B")) -> Arrays:
    """``transformer.NAME.lora_A.weight``; with a prefix that in place of the component."""
    tensors = {}
    for (component, module), its in made.items():
        name = f"{component if prefix is None else prefix}.{module}".lstrip(".")
        tensors |= {f"{name}.{halves[0]}.weight": its.down, f"{name}.{halves[1]}.weight": its.up}
    return tensors


def kohya(made: Products, alpha: float) -> Arrays:
    """``lora_unet_NAME_WITH_UNDERSCORES.lora_down.weight``, with alphas."""
    tensors: Arrays = {}
    for (component, module), its in made.items():
        name = f"{KOHYA[component]}_{module.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": its.down, f"{name}.lora_up.weight": its.up}
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    return tensors


def peft(folder: Path, made: Products, **config: object) -> Path:
    """A folder as PEFT's ``save_pretrained`` writes it."""
    folder.mkdir(parents=True)
    [component] = {component for component, _ in made}
    rank = next(iter(made.values())).rank
    content = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({module for _, module in made}),
        "base_model_name_or_path": component,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content | config))
    save_file(diffusers(made, "base_model.model"), folder / "adapter_model.safetensors")
    return folder


def write(file: Path, tensors: Arrays, metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file, metadata)
    return file
