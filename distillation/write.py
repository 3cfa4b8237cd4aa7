"""A student written to disk in diffusers' layout, a chunk of a tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from exporters.student.classes import component_class

Dtype = Literal["fp16", "bf16", "fp32"]
_DTYPES: dict[Dtype, tuple[str, np.dtype[Any]]] = {
    "fp16": ("F16", np.dtype(np.float16)),
    "bf16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "fp32": ("F32", np.dtype(np.float32)),
}
_DIFFUSERS = ("transformer", "vae")  # the other components are transformers'
_TOKENIZERS = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5Tokenizer"}


def itemsize(dtype: Dtype) -> int:
    """Bytes of a number."""
    return _DTYPES[dtype][1].itemsize


def write_component(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    chunks: Mapping[str, Callable[[], Iterable[np.ndarray]]],
    dtype: Dtype,
    on_tensor: Callable[[int], None] = lambda size: None,
) -> None:
    """Write a component's ``config.json`` and its weights; at most one chunk of a tensor is in memory at a time.

    Args:
        folder: the component's, which is made; its name says whether it is diffusers' or transformers'.
        config: its configuration.
        shapes: of its tensors, by name, in the order in which they are stored.
        chunks: makes a tensor's numbers, one flat piece after another.
        dtype: how they are stored.
        on_tensor: called with the bytes of each tensor that was written.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_weights(folder, shapes, chunks, dtype, on_tensor)


def write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    chunks: Mapping[str, Callable[[], Iterable[np.ndarray]]],
    dtype: Dtype,
    on_tensor: Callable[[int], None] = lambda size: None,
    variant: str = "",
) -> None:
    """Write a component's weights alone, into its folder.

    Args:
        folder: the component's.
        shapes: as :func:`write_component` takes them.
        chunks: likewise.
        dtype: likewise.
        on_tensor: likewise.
        variant: of the file's name; none where empty.
    """
    stem = "diffusion_pytorch_model" if folder.name in _DIFFUSERS else "model"
    file = folder / ".".join(filter(None, (stem, variant, "safetensors")))
    with file.open("wb") as stream:
        stream.write(_header(shapes, dtype))
        for name, shape in shapes.items():
            for chunk in chunks[name]():
                stream.write(chunk.astype(_DTYPES[dtype][1]).tobytes())
            on_tensor(math.prod(shape) * itemsize(dtype))


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> bytes:
    """A safetensors header (https://huggingface.co/docs/safetensors): its length, then JSON, padded to 8 bytes."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        length = math.prod(shape) * itemsize(dtype)
        header[name] = {"dtype": _DTYPES[dtype][0], "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_index(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``model_index.json``, which lists the components and the tokenizers that lie in the folder.

    Args:
        folder: the student's.
        configs: of the components that it has.
    """
    index: dict[str, Any] = {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    for component, config in configs.items():
        index[component] = ["diffusers" if component in _DIFFUSERS else "transformers", component_class(component, config)]
    for name, kind in _TOKENIZERS.items():
        index[name] = ["transformers", kind] if (folder / name).exists() else [None, None]
    index.setdefault("text_encoder_3", [None, None])
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def write_clip_tokenizer(source: Path, target: Path, vocab: int, positions: int) -> None:
    """Write a CLIP tokenizer whose start and end tokens are the last two of the vocabulary.

    Args:
        source: another tokenizer's folder, whose words are taken over.
        target: the new folder.
        vocab: size of the vocabulary.
        positions: tokens of a prompt.
    """
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    specials = {"<|startoftext|>": vocab - 2, "<|endoftext|>": vocab - 1}
    content["model"]["vocab"].update(specials)
    for token in content["added_tokens"]:
        token["id"] = specials.get(token["content"], token["id"])

    def move(node: Any) -> Any:
        """The post-processor names the special tokens' ids too."""
        if isinstance(node, list):
            if len(node) == 2 and node[0] in specials:
                return [node[0], specials[node[0]]]
            return [move(item) for item in node]
        if isinstance(node, dict):
            moved = {key: move(value) for key, value in node.items()}
            if moved.get("id") in specials and "ids" in moved:
                moved["ids"] = [specials[moved["id"]]]
            return moved
        return node

    content["post_processor"] = move(content["post_processor"])
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    config["model_max_length"] = positions
    target.mkdir(parents=True)
    (target / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
