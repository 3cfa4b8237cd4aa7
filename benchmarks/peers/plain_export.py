"""The student's components through ``torch.onnx.export`` with its defaults: what a first script would write."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporters.layouts.spec import VAE_SCALE
from exporters.reference.diffusers import reference_component
from exporters.student.student import Student

CLIPS = ("text_encoder", "text_encoder_2")


class _Clip(nn.Module):
    """A text encoder's pooled embedding and its last hidden state but one: what diffusers takes of it."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.encoder(input_ids, output_hidden_states=True)
        return out.text_embeds, out.hidden_states[-2]


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]  # type: ignore[no-any-return]


def export_transformer(
    student: Student, file: Path, height: int, width: int, text_tokens: int, sinusoid_outside: bool = False
) -> Path:
    """Diffusers' transformer as it is, or with the timestep's sinusoid ``[1, 256]`` for an input in the timestep's place."""
    config = student.configs["transformer"]
    transformer = reference_component(student, "transformer")
    example = (
        torch.zeros(1, config["in_channels"], height // VAE_SCALE, width // VAE_SCALE),
        torch.zeros(1, text_tokens, config["joint_attention_dim"]),
        torch.zeros(1, config["pooled_projection_dim"]),
        torch.tensor([900.0]) if not sinusoid_outside else torch.zeros(1, transformer.time_text_embed.time_proj.num_channels),
    )
    if sinusoid_outside:
        transformer.time_text_embed.time_proj = torch.nn.Identity()
    return _export(transformer, example, file)


def export_clip(student: Student, component: str, file: Path, tokens: int) -> Path:
    """A CLIP text encoder."""
    return _export(_Clip(reference_component(student, component)), (torch.zeros(1, tokens, dtype=torch.int64),), file)


def export_decoder(student: Student, file: Path, height: int, width: int) -> Path:
    """The VAE's decoder."""
    channels = student.configs["transformer"]["in_channels"]
    example = torch.zeros(1, channels, height // VAE_SCALE, width // VAE_SCALE)
    return _export(_Decoder(reference_component(student, "vae")), (example,), file)


def _export(module: nn.Module, example: Sequence[Tensor], file: Path) -> Path:
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(module.eval(), tuple(example), str(file), dynamo=True, external_data=True, verbose=False)
    return file
