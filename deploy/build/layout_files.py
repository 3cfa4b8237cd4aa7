"""The small files of a bundle: tokenizers, scheduler, licences and, for the ``optimum`` layout, diffusers' configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporters.layouts.spec import GraphOptions
from exporters.student.classes import CLASS_KEY, component_class
from exporters.student.student import Student
from exporters.student.tokenizers import Tokenizers
from exporters.student.weights.templates import class_config
from quantization.files import write_text


def write_layout_files(student: Student, options: GraphOptions, tokenizers: Tokenizers, folder: Path) -> list[str]:
    """Write them into ``folder``.

    Args:
        student: the student.
        options: the bundle's shape.
        tokenizers: of each kept encoder.
        folder: the bundle's folder.

    Returns:
        Their paths in the bundle.
    """
    files = {"scheduler/scheduler_config.json": _json(student.configs["scheduler"])}
    for _, name, tokenizer in tokenizers:
        files[f"{name}/tokenizer.json"] = tokenizer_json(tokenizer)
    files |= student.licences()
    if options.layout == "optimum":
        files |= _optimum_files(student, options, tokenizers)
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return sorted(files)


def tokenizer_json(tokenizer: Any) -> str:
    """The tokenizer without padding and truncation: the manifest says how long its output is."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["padding"] = content["truncation"] = None
    return json.dumps(content, ensure_ascii=False)


def _optimum_files(student: Student, options: GraphOptions, tokenizers: Tokenizers) -> dict[str, str]:
    """What ``ORTStableDiffusion3Pipeline.from_pretrained`` reads beside the graphs (optimum-onnx 0.1.0)."""
    configs = {name: class_config(name, config) for name, config in student.stored_configs.items()}
    if not options.keep_t5:
        configs.pop("text_encoder_3", None)
    else:
        configs["text_encoder_3"]["num_hidden_layers"] = configs["text_encoder_3"]["num_layers"]  # the name that optimum asks for
    configs["vae_decoder"] = configs["vae_encoder"] = configs.pop("vae")
    files = {f"{name}/config.json": _json(config) for name, config in configs.items()}
    index: dict[str, Any] = {
        "_class_name": "StableDiffusion3Pipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", student.configs["scheduler"][CLASS_KEY]],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"] if options.keep_t5 else [None, None],
        "tokenizer": ["transformers", "CLIPTokenizerFast"],
        "tokenizer_2": ["transformers", "CLIPTokenizerFast"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"] if options.keep_t5 else [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", component_class("vae", student.configs["vae"])],
    }
    files["model_index.json"] = _json(index)
    for name, folder, tokenizer in tokenizers:
        files[f"{folder}/tokenizer_config.json"] = _json(tokenizer_config(name, tokenizer, options))
    return files


def tokenizer_config(name: str, tokenizer: Any, options: GraphOptions) -> dict[str, Any]:
    """Special tokens and length in the words that transformers 4 and 5 both read."""
    t5 = name == "input_ids_3"
    specials = ("unk_token", "pad_token", "eos_token") + (() if t5 else ("bos_token",))
    return {
        "tokenizer_class": "T5TokenizerFast" if t5 else "CLIPTokenizerFast",
        "model_max_length": options.max_sequence_length if t5 else options.clip_tokens,
        **({"extra_ids": 0} if t5 else {}),
        **{special: str(getattr(tokenizer, special)) for special in specials},
    }


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
