"""Write a student's transformer, VAE and CLIPs as an original single-file checkpoint: the inverse of diffusers' converters."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from exporters.student.student import Student

Arrays = dict[str, np.ndarray]
_TOP = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_QKV = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def _swap(array: np.ndarray) -> np.ndarray:
    scale, shift = np.split(array, 2)
    return np.concatenate([shift, scale])


def transformer(student: Student) -> Arrays:
    tensors = {name: weight.load() for name, weight in student.weights["transformer"].items()}
    out: Arrays = {"pos_embed": tensors["pos_embed.pos_embed"]}
    last = student.configs["transformer"]["num_layers"] - 1
    for kind in ("weight", "bias"):
        for name, original in _TOP.items():
            if f"{name}.{kind}" in tensors:
                value = tensors[f"{name}.{kind}"]
                out[f"{original}.{kind}"] = _swap(value) if name == "norm_out.linear" else value
        for i in range(last + 1):
            here = f"transformer_blocks.{i}"
            for name, original in _BLOCK.items():
                if f"{here}.{name}.{kind}" in tensors:
                    value = tensors[f"{here}.{name}.{kind}"]
                    swapped = name == "norm1_context.linear" and i == last
                    out[f"joint_blocks.{i}.{original}.{kind}"] = _swap(value) if swapped else value
            for original, names in _QKV.items():
                if f"{here}.{names[0]}.{kind}" in tensors:
                    out[f"joint_blocks.{i}.{original}.{kind}"] = np.concatenate([tensors[f"{here}.{n}.{kind}"] for n in names])
    return {f"model.diffusion_model.{name}": value for name, value in out.items()}


def vae(student: Student) -> Arrays:
    out = {}
    for name, weight in student.weights["vae"].items():
        value, new = weight.load(), name
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            new = new.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if ".attn_1." in new and new.endswith("weight") and value.ndim == 2:
            value = value[:, :, None, None]
        out[f"first_stage_model.{new}"] = value
    return out


def clips(student: Student) -> Arrays:
    out = {}
    for component, prefix in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        for name, weight in student.weights[component].items():
            if not (component == "text_encoder" and name == "text_projection.weight"):  # not in the original files
                out[f"text_encoders.{prefix}.transformer.{name}"] = weight.load()
    return out


def write(file: Path, *parts: Arrays) -> Path:
    save_file({name: np.ascontiguousarray(value) for part in parts for name, value in part.items()}, file)
    return file
