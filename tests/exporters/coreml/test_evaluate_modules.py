"""Whole torch modules as coremltools converts them, evaluated, against torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from exporters.coreml.evaluate import evaluate, open_package
from exporters.reference.decibels import snr_db
from tests.helpers.packages import traced

REQUIRED_DB = {"fp32": 100.0, "fp16": 50.0}


class Attention(nn.Module):
    """Self-attention of two heads between a layer norm and a gated linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.gate, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed * F.gelu(self.gate(x), approximate="tanh"))


class ConvolutionBlock(nn.Module):
    """What a VAE decoder is made of: group norm, SiLU, convolution, nearest upsampling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.up, self.down = nn.ConvTranspose2d(channels, 5, 4, 2, 1), nn.Conv2d(channels, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x + self.conv(F.silu(self.norm(x)))
        return self.up(hidden) + self.down(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Selected(nn.Module):
    """A library's model with one of its results."""

    def __init__(self, model: nn.Module, select: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.select = model, select

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.select(self.model, *inputs)


def clip() -> nn.Module:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "projection_dim": 12}
    config = transformers.CLIPTextConfig(vocab_size=50, max_position_embeddings=9, eos_token_id=49, **sizes)
    return Selected(transformers.CLIPTextModelWithProjection(config), lambda model, ids: model(ids.int()).text_embeds)


def t5() -> nn.Module:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    model = transformers.T5EncoderModel(transformers.T5Config(vocab_size=50, **sizes))
    return Selected(model, lambda model, ids: model(ids.int()).last_hidden_state)


def mmdit() -> nn.Module:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=20,
        caption_projection_dim=24,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return Selected(model, lambda model, *inputs: model(*inputs, return_dict=False)[0])


def vae_decoder() -> nn.Module:
    vae = diffusers.AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 16),
        up_block_types=("UpDecoderBlock2D",) * 2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return Selected(vae, lambda model, latents: model.decode(latents, return_dict=False)[0])


IDS = torch.tensor([[48, 3, 17, 17, 5, 49, 49, 49, 49]], dtype=torch.int32)


@dataclass(frozen=True)
class Case:
    """A module, its inputs and an operation that its package must hold (or the case would not test it)."""

    module: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    holds: str
    targets: tuple[str, ...] = ("iOS17", "iOS18")


CASES = {
    "attention": Case(lambda: Attention(24), lambda: {"x": torch.randn(2, 7, 24)}, "layer_norm"),
    "convolution block": Case(lambda: ConvolutionBlock(8), lambda: {"x": torch.randn(1, 8, 6, 5)}, "conv_transpose"),
    "CLIP": Case(clip, lambda: {"input_ids": IDS}, "gather"),
    "T5": Case(t5, lambda: {"input_ids": IDS}, "rsqrt", ("iOS18",)),
    "MMDiT": Case(
        mmdit,
        lambda: {
            "hidden_states": torch.randn(1, 4, 8, 6),
            "encoder_hidden_states": torch.randn(1, 5, 20),
            "pooled_projections": torch.randn(1, 16),
            "timestep": torch.tensor([37.0]),
        },
        "scaled_dot_product_attention",
        ("iOS18",),
    ),
    "VAE decoder": Case(vae_decoder, lambda: {"latents": torch.randn(1, 4, 5, 4)}, "conv", ("iOS18",)),
}


@pytest.mark.parametrize(("name", "target"), [(name, target) for name, case in CASES.items() for target in case.targets])
@pytest.mark.parametrize("precision", REQUIRED_DB)
def test_module(name: str, target: str, precision: str, tmp_path: Path) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    module, inputs = case.module().eval(), case.inputs()
    with torch.no_grad():
        expected = module(*inputs.values()).numpy()
    program = open_package(traced(tmp_path / "m.mlpackage", module, inputs, target, precision))
    assert case.holds in {operation.kind for operation in program.operations}
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    got = evaluate(program, arrays, precision)["result"]
    assert got.dtype == np.float32
    assert snr_db(expected, got) >= REQUIRED_DB[precision]
