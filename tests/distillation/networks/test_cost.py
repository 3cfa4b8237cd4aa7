"""A transformer counted from its configuration: SD3.5-Medium by hand, and a small one against what torch keeps of a real pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from distillation.networks.adapters import adapted
from distillation.networks.cost import TransformerCost, transformer_cost
from distillation.random_students import PRESETS, _transformer_config
from distillation.stages import Lora
from exporters.errors import InputError, StudentError

MEDIUM = _transformer_config(PRESETS["full"])
TINY = _transformer_config(PRESETS["tiny"])
D, LAYERS, DUAL, JOINT, POOLED, TEXT = 1536, 24, 13, 4096, 2048, 333


@pytest.fixture(scope="module", params=[512, 1024])
def medium(request: pytest.FixtureRequest) -> tuple[int, TransformerCost]:
    return request.param, transformer_cost(MEDIUM, request.param, request.param, TEXT, Lora())


def test_sd35_medium_s_parameters(medium: tuple[int, TransformerCost]) -> None:
    """By its matrices: biases and norms are 1 / 1536 of them, and the smallest matrix has a bias to 256 columns: .2 % at most.

    The last block answers pictures alone: it has no output and no feed-forward for text, and two modulations of it in place of
    six. Without that they would be 680 M and 772 M.
    """
    _, cost = medium
    square = D * D
    image = square * (LAYERS * (4 + 8) + DUAL * 4)
    text = square * (LAYERS * 3 + (LAYERS - 1) * (1 + 8))
    modulation = square * (DUAL * 9 + (LAYERS - DUAL) * 6 + (LAYERS - 1) * 6 + 2 + 2)
    assert cost.image == pytest.approx(image, rel=2e-3)
    assert cost.text == pytest.approx(text, rel=2e-3)
    assert cost.modulation == pytest.approx(modulation, rel=2e-3)
    ends = D * (256 + D + POOLED + D) + D * JOINT + 2 * D * 64  # time, pooled text, text, patches in and out
    assert cost.parameters == pytest.approx(image + text + modulation + ends, rel=2e-3)
    assert cost.parameters + cost.table == pytest.approx(2.47e9, rel=2e-3)  # as published: 4.94 GB in fp16
    assert cost.matrices == pytest.approx(image + text, rel=2e-3)
    assert cost.block == pytest.approx(square * (12 + 4 + 12 + 9 + 6), rel=2e-3)
    published = {"image": 802e6, "text": 680e6, "modulation": 772e6}
    assert all(getattr(cost, name) == pytest.approx(count, rel=0.1) for name, count in published.items())


def test_sd35_medium_s_operations(medium: tuple[int, TransformerCost]) -> None:
    """Two for each weight and token that it meets, four for each pair of tokens and channel of an attention."""
    size, cost = medium
    square, tokens = D * D, (size // 16) ** 2
    image = 2 * tokens * (square * (LAYERS * 12 + DUAL * 4) + 2 * D * 64)
    text = 2 * TEXT * (square * (LAYERS * 3 + (LAYERS - 1) * 9) + D * JOINT)
    attention = 4 * D * (LAYERS * (tokens + TEXT) ** 2 + DUAL * tokens**2)
    once = 2 * (cost.modulation + D * (256 + D + POOLED + D))
    assert cost.flops == pytest.approx(image + text + attention + once, rel=1e-4)  # biases are not multiplied
    assert cost.flops == pytest.approx({512: 2.45e12, 1024: 11.3e12}[size], rel=0.01)


def test_sd35_medium_s_adapters(medium: tuple[int, TransformerCost]) -> None:
    size, cost = medium
    tokens = (size // 16) ** 2
    image, text = LAYERS * (4 * 2 + 2 * 5) + DUAL * 4 * 2, LAYERS * 3 * 2 + (LAYERS - 1) * (2 + 2 * 5)  # widths in and out
    assert cost.adapter == 64 * D * (image + text)
    assert cost.adapter_flops == 2 * 64 * D * (image * tokens + text * TEXT)


def test_sd35_medium_s_activations(medium: tuple[int, TransformerCost]) -> None:
    """A block keeps some thirty states of 1536 channels a token; with checkpointing each keeps one, beside one block's own.

    The inputs of norms, products and attentions, what is gated, and twice the feed-forward layer's, which are four times as wide.
    They grow as tokens do, for a fused attention keeps no scores.
    """
    size, cost = medium
    tokens = (size // 16) ** 2 + TEXT
    assert 25 < cost.kept / (tokens * D * LAYERS) < 35
    assert 1 < cost.kept_checkpointed / (tokens * D * LAYERS) < 4
    assert cost.kept_checkpointed < cost.kept / 10


def real(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return SD3Transformer2DModel.from_config(config)


def test_a_real_pass_keeps_what_is_counted() -> None:
    """The same count over tensors that have memory: places and sizes of all that autograd saves, weights apart."""
    cost = transformer_cost(TINY, 64, 96, 7)
    model = real(TINY)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    held = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(torch.randn(1, 16, 8, 12), torch.randn(1, 7, 96), torch.randn(1, 72), torch.tensor([500.0]))
    assert sum(seen.values()) == pytest.approx(4 * cost.kept, rel=0.01)  # a storage is rounded up here and there


def test_counts_are_those_of_the_networks() -> None:
    lora = Lora(rank=5)
    cost = transformer_cost(TINY, 64, 64, 7, lora)
    model = real(TINY)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.table == model.pos_embed.pos_embed.numel()
    assert cost.block == max(sum(p.numel() for p in block.parameters()) for block in model.transformer_blocks)
    assert cost.adapter == sum(parameter.numel() for parameter in adapted(model, lora).student.parameters())
    assert transformer_cost(TINY, 64, 64, 7).adapter == 0


@pytest.mark.parametrize(("height", "width"), [(64, 60), (64, 208), (0, 64), (-16, 64)], ids=["cut", "large", "none", "less"])
def test_pictures_that_cannot_be_drawn(height: int, width: int) -> None:
    with pytest.raises(InputError, match=rf"multiples of 16 up to 192, got {width}x{height}"):
        transformer_cost(TINY, height, width, 7)


def test_another_s_configuration() -> None:
    with pytest.raises(StudentError):
        transformer_cost(TINY | {"num_layers": "three"})
    with pytest.raises(InputError, match="names no linear layer"):
        transformer_cost(TINY, 64, 64, 7, Lora(targets=("to_w",)))
