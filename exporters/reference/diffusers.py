"""The student as diffusers and transformers run it: what every graph is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from exporters.student.scheduler import reference_scheduler
from exporters.student.student import TOKENIZERS, Student
from exporters.student.tokenizers import load_tokenizer
from exporters.student.weights.templates import reference_module


def reference_component(student: Student, component: str) -> Any:
    """One component as its own class, with the student's weights in fp32."""
    module: nn.Module = reference_module(component, student.configs[component])
    state = {name: _tensor(weight.load()) for name, weight in student.weights[component].items()}
    if "shared.weight" in state:
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
    module.load_state_dict(state, assign=True)
    _materialise_buffers(module, component, student)
    return module.eval().requires_grad_(False)


def reference_pipeline(student: Student, keep_t5: bool) -> Any:
    """The whole student as diffusers' ``StableDiffusion3Pipeline``, in fp32.

    Args:
        student: the student.
        keep_t5: whether the third text encoder takes part; otherwise diffusers feeds zeros in its place.
    """
    from diffusers import StableDiffusion3Pipeline

    parts: dict[str, Any] = {
        name: reference_component(student, name) for name in ("text_encoder", "text_encoder_2", "transformer", "vae")
    }
    parts["text_encoder_3"] = reference_component(student, "text_encoder_3") if keep_t5 else None
    for component, name in TOKENIZERS.items():
        parts[name] = load_tokenizer(student, component) if parts[component] is not None else None
    pipeline: Any = StableDiffusion3Pipeline(**parts, scheduler=reference_scheduler(student))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.astype("float32")) if array.dtype.kind not in "iub" else torch.from_numpy(array)


def _materialise_buffers(module: nn.Module, component: str, student: Student) -> None:
    """Buffers that are not saved (CLIP's position ids) were made on the meta device: make them again on the CPU."""
    if not any(buffer.is_meta for buffer in module.buffers()):
        return
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name == "position_ids" and buffer.is_meta:
                setattr(part, name, torch.arange(buffer.shape[-1]).expand(tuple(buffer.shape)))
    left = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not left, f"{component}: buffers without values: {left}"
