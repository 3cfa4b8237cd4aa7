"""What users, tiers, manifests and exporters choose from, each word once; light to import.

>>> options(Layout)
('native', 'optimum', 'swift')
"""

from __future__ import annotations

from typing import Any, Literal, get_args

FormatName = Literal["onnx", "coreml"]
"""The format of a bundle's graphs."""

Layout = Literal["native", "optimum", "swift"]
"""Whose pipeline a bundle's graphs serve: this project's, optimum-onnx's, or Apple's Swift client's."""

Sampler = Literal["euler", "renoise", "dpmpp"]
"""How a step is taken: along the flow, by predicting the clean latents and noising them again, or by DPM-Solver++, which looks
back at the steps before."""

UpscaleMode = Literal["nearest", "nearest-exact", "bilinear", "bicubic"]
"""How latents that grow from step to step are enlarged, in torch's words."""

ComputeUnits = Literal["cpu-and-ne", "cpu-and-gpu"]
"""What Core ML programs are made for."""

System = Literal["iOS17", "iOS18"]
WITH_FUNCTIONS: tuple[System, ...] = ("iOS18",)
"""Systems whose Core ML packages may have several functions, which share their weights."""
"""The oldest system that runs a Core ML program, as Core ML's tools call it; macOS 14 and 15 count likewise."""

AttentionForm = Literal["fused", "split-einsum"]
"""Attention in Core ML programs: one operation for all heads, or one einsum for each."""

AttentionOperator = Literal["MultiHeadAttention", "Attention"]
"""Attention in ONNX graphs: onnxruntime's own operator, or ONNX's."""

Opset = Literal[21, 23]
"""The opset of ONNX graphs."""

TRACED: Opset = 23
"""The opset that graphs are traced at, the first with RMSNormalization and Attention."""

Compute = Literal["fp32", "fp16"]
"""The type that matrices compute in."""

Precision = Literal["fp32", "fp16", "mixed"]
"""How a bundle's matrices are stored: all alike, or by the rules of a profile."""

Parity = Literal["auto", "always", "never"]
"""When graphs are measured in a build; ``auto`` leaves out those of more than 1 GiB."""

Runtime = Literal["onnxruntime", "openvino", "coreml", "evaluator"]
"""What runs a bundle's graphs."""

OnnxRuntime = Literal["onnxruntime", "openvino"]
"""What runs ONNX graphs."""

Provider = Literal["wasm", "webgpu"]
"""What runs a bundle's graphs in a browser."""


ENCODER_IDS = {"text_encoder": "input_ids", "text_encoder_2": "input_ids_2", "text_encoder_3": "input_ids_3"}
"""Each text encoder's token ids, by the name that they have as inputs of the layout ``native`` and in manifests."""


RUN_ONCE = ("text_encoder", "text_encoder_2", "text_encoder_3", "conditioner")
"""Graphs that run once for a picture, however many steps it takes; the decoder, which does too, is as dear as a step."""

PROMPTS = ("a red circle left of a blue square on a white background", "two green triangles on a black background")
"""What graphs, pictures and runtimes are measured with: captions of the built-in student's world, and as good as any text."""


def options(choice: Any) -> tuple[Any, ...]:
    """The words of a choice, in the order of their definition."""
    return get_args(choice)
