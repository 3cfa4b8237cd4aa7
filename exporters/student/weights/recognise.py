"""What a file or a folder is that is given as a student, or as a part of one, and is none: what to call it, and what to do.

By first bytes, tensor names and file names alone; nothing is opened that could run code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SAVE_WHOLE = "load it in diffusers, save the whole pipeline with save_pretrained, and give that folder"
FUSE = "give the student that it is of, and this with --lora"
UNQUANTIZED = "give the checkpoint that it was made of, in fp32, fp16 or bf16; a profile makes a bundle as small (--profile)"
CHECKPOINT = "give the checkpoint that it was made of, in safetensors"
GGUF = "give the folder of a pipeline, and the file with --transformer or --text-encoder-3"
AGAIN = "copy or download the file again"
_FOLDER = "give the folder of a student in diffusers layout, or a single .safetensors file in one"
_HEAD_BYTES = 512


@dataclass(frozen=True)
class Kind:
    """What something is instead.

    Attributes:
        what: follows its name: ``is a git-lfs pointer``.
        remedy: what to do.
    """

    what: str
    remedy: str


def file_kind(file: Path) -> Kind | None:  # noqa: PLR0911  (a return for each kind)
    """What a file is that should be weights, JSON or a tokenizer, by its first bytes.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return Kind("is empty", AGAIN)
    if head.startswith(b"version https://git-lfs"):
        return Kind(
            "is a git-lfs pointer, not the file that it stands for", "fetch the files with `git lfs pull`, or download them"
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return Kind(
            "is a web page, not the file itself",
            "download the file itself; a licence may have to be accepted or a login be given",
        )
    if text.startswith((b"entry not found", b"repository not found", b"invalid username", b"access to model", b'{"error"')):
        return Kind("is a server's refusal, not the file itself", "download the file itself, with the access that it needs")
    if head.startswith(b"GGUF"):
        return Kind("is a GGUF file", GGUF)
    if file.suffix in PICKLE_SUFFIXES or head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return Kind(
            "is a pickle checkpoint, which can run any code when opened; it was not opened",
            "convert it to safetensors where you trust it",
        )
    return None


def quantization(names: Iterable[str]) -> str:
    """The tool that quantized the weights, by the tensors that it leaves beside them; empty for none.

    >>> quantization(["proj_out.weight", "proj_out.weight.absmax"]), quantization(["proj_out.weight"])
    ('bitsandbytes', '')
    """
    for tool, pattern in _QUANTIZED.items():
        if any(pattern.search(name) for name in names):
            return tool
    return ""


_QUANTIZED = {
    "bitsandbytes": re.compile(r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map)$|quant_state\.bitsandbytes"),
    "torchao": re.compile(r"(?:_weight_qdata|_weight_scale_and_zero|:_?qdata|:tensor_impl|\.int_data|_weight_zero_point)"),
    "quanto": re.compile(r"\.weight\._(?:data|scale|shift)"),
    "nunchaku (SVDQuant)": re.compile(r"\.(?:wscales|wcscales|wtscale|smooth_factor|smooth_factor_orig)$"),
    "GPTQ or AWQ": re.compile(r"\.(?:qweight|qzeros|g_idx)$"),
    "compressed-tensors": re.compile(r"\.weight_packed$"),
    "nvfp4": re.compile(r"\.weight_scale_2$"),
}
_EXPORTS = {
    "an ONNX graph": re.compile(r"\.onnx$"),
    "an OpenVINO model": re.compile(r"^openvino_.*\.(?:xml|bin)$"),
    "a Flax checkpoint": re.compile(r"\.msgpack$"),
    "a TensorFlow checkpoint": re.compile(r"\.h5$"),
    "a Core ML model": re.compile(r"\.ml(?:package|modelc|model)$"),
    "a TensorRT engine": re.compile(r"\.(?:engine|plan)$"),
}


def export_kind(name: str) -> str:
    """Which other program's form of a model a file is, by its name; empty for none.

    >>> export_kind("openvino_model.bin"), export_kind("config.json")
    ('an OpenVINO model', '')
    """
    return next((what for what, pattern in _EXPORTS.items() if pattern.search(name)), "")


def quantization_of(config: Mapping[str, Any]) -> str:
    """The tool that a configuration says the weights were quantized with; empty for none."""
    record = config.get("quantization_config")
    if not isinstance(record, Mapping) or record.get("load_in_8bit") is True or record.get("load_in_4bit") is True:
        # bitsandbytes' are read; where its tensors say otherwise, they tell
        return ""
    method = str(record.get("quant_method") or record.get("quant_type") or "an unknown method")
    return "" if method == "torchao" else method  # whose tensors tell, too


def checkpoint_kind(names: Collection[str]) -> Kind | None:  # noqa: PLR0911  (a return for each kind)
    """What a single file is that holds no MMDiT that can be read, by its tensors' names."""

    def some(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if tool := quantization(names):
        return Kind(f"is quantized with {tool}", UNQUANTIZED)
    if some("joint_blocks.", "model.diffusion_model.joint_blocks.", "transformer_blocks.", "transformer.transformer_blocks."):
        return None
    if some("text_model.", "encoder.block.", "shared.", "text_encoders."):
        return Kind("holds text encoders and no transformer", _FOLDER)
    if some("double_blocks.", "model.diffusion_model.double_blocks."):
        return Kind("is a checkpoint of Flux, not of Stable Diffusion 3", _FOLDER)
    if some("model.diffusion_model.input_blocks.", "down_blocks."):
        return Kind("is a checkpoint of an older Stable Diffusion (a U-Net), not of Stable Diffusion 3", _FOLDER)
    if some("decoder.", "first_stage_model.", "vae."):
        return Kind("holds a VAE and no transformer", _FOLDER)
    return None


def path_kind(path: Path) -> Kind | None:
    """What a path is that does not exist, or a folder without ``model_index.json``."""
    if not path.exists():
        if path.is_symlink():
            return Kind("is a link that leads nowhere", _FOLDER)
        return Kind("does not exist", _FOLDER)
    return _cache_kind(path) or _folder_kind(path)


def _cache_kind(path: Path) -> Kind | None:
    """A hub's cache, whose models are the students."""
    models = sorted(child for child in path.glob("models--*") if (child / "snapshots").is_dir())
    if models:
        ids = ["/".join(model.name.split("--")[1:]) for model in models]
        return Kind("is a hub cache of several models", "give one of them, e.g. " + " or ".join(ids[:5]))
    return None


def _folder_kind(path: Path) -> Kind | None:  # noqa: PLR0911  (a return for each kind)
    names = {file.name for file in path.iterdir()}
    single = sorted(name for name in names if name.endswith(".safetensors"))
    if "manifest.json" in names:
        return Kind("is a bundle, not a student", "give the student that it was built of")
    if "adapter_config.json" in names or any(name.startswith(("adapter_model.", "pytorch_lora_weights.")) for name in names):
        return Kind("is a LoRA, not a student", FUSE)
    if any(name.endswith(".gguf") for name in names):
        return Kind("holds a GGUF file, not a student", GGUF)
    if "modular_model_index.json" in names:
        return Kind("is a modular pipeline, not a StableDiffusion3Pipeline", SAVE_WHOLE)
    if "config.json" in names:
        return Kind(
            "is one component of a pipeline, not the whole", "give the folder with model_index.json, one above, or " + SAVE_WHOLE
        )
    if any(name.endswith(".ckpt") for name in names) and not single:
        return Kind("holds a pickle checkpoint, not a student", f"convert it to safetensors where you trust it; {SAVE_WHOLE}")
    if single:
        return Kind(
            "is not in diffusers layout",
            f"give the single file itself ({path / single[0]}), or save the pipeline with save_pretrained",
        )
    return None
