"""What an SD3 transformer is made of and what a pass through it costs, from its configuration alone.

Parameters are counted from the shapes that its class has. Operations, and what a pass keeps for the way back, are counted while
diffusers' own class runs on tensors that have a shape and no memory (torch's fake tensors, which are meta tensors that call
themselves the CPU's: attention is then the fused kernel, as on a GPU, and keeps no scores).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from distillation.networks.adapters import targeted
from distillation.stages import Lora
from distillation.training.trainee import is_inner_matrix
from exporters.errors import Complaint, InputError
from exporters.student.weights.parameters import public
from exporters.student.weights.templates import expected_shapes

__all__ = ["TransformerCost", "transformer_cost"]

VAE_FACTOR = 8  # pixels to a latent, along each side
TEXT_TOKENS = 77 + 256  # CLIP's and T5's, as diffusers' pipeline has them
_TABLE = "pos_embed.pos_embed"
_TEXT = (".add_", ".norm_added_", ".to_add_out.", ".ff_context.")
_MODULATION = (".norm1.linear.", ".norm1_context.linear.", "norm_out.linear.")


@dataclass(frozen=True)
class TransformerCost:
    """A transformer and one sample's pass through it, at one size of pictures.

    Attributes:
        parameters: all that can be learned.
        image: of them, the blocks' for pictures.
        text: likewise, for text.
        modulation: likewise, of the norms that time and pooled text move (AdaLN).
        matrices: of them, what Muon has.
        table: numbers of the positional table, which is stored and not learned.
        blocks: how many it has.
        block: parameters of the largest block.
        flops: floating-point operations of a forward pass, two for a multiplication with its addition.
        kept: numbers that a pass keeps for the way back.
        kept_checkpointed: likewise where blocks are computed again on the way back: what goes into them, and one block's own.
        adapter: parameters of one LoRA; 0 without.
        adapter_flops: what it adds to a forward pass.
    """

    parameters: int
    image: int
    text: int
    modulation: int
    matrices: int
    table: int
    blocks: int
    block: int
    flops: int
    kept: int
    kept_checkpointed: int
    adapter: int = 0
    adapter_flops: int = 0


def transformer_cost(
    config: Mapping[str, Any], height: int = 1024, width: int = 1024, text_tokens: int = TEXT_TOKENS, lora: Lora | None = None
) -> TransformerCost:
    """Count a transformer.

    Args:
        config: its ``config.json``.
        height: of the pictures, in pixels.
        width: likewise.
        text_tokens: CLIP's and T5's together.
        lora: adapters to count too.

    Raises:
        InputError: there is no such picture, or the adapters have no place.
        StudentError: the configuration is not one of ``SD3Transformer2DModel``.
    """
    shapes = expected_shapes("transformer", dict(config))
    learned = {name: math.prod(shape) for name, shape in shapes.items() if name != _TABLE}
    streams, blocks = Counter[str](), Counter[str]()
    for name, count in learned.items():
        streams[_stream(name)] += count
        if name.startswith("transformer_blocks."):
            blocks[name.split(".")[1]] += count
    adapters = _adapters(shapes, lora)
    passed = _passed(config, height, width, text_tokens)
    tokens = {"image": passed.image_tokens, "text": text_tokens}  # a modulation is computed once
    return TransformerCost(
        parameters=sum(learned.values()),
        image=streams["image"],
        text=streams["text"],
        modulation=streams["modulation"],
        matrices=sum(count for name, count in learned.items() if is_inner_matrix(name, torch.empty(shapes[name], device="meta"))),
        table=math.prod(shapes[_TABLE]),
        blocks=len(blocks),
        block=max(blocks.values()),
        flops=passed.flops,
        kept=passed.kept,
        kept_checkpointed=passed.kept_checkpointed,
        adapter=sum(adapters.values()),
        adapter_flops=sum(2 * count * tokens.get(_stream(f"{name}."), 1) for name, count in adapters.items()),
    )


def _stream(name: str) -> str:
    """What a tensor works on."""
    if any(part in name for part in _MODULATION):
        return "modulation"
    if not name.startswith("transformer_blocks."):
        return "ends"
    return "text" if any(part in name for part in _TEXT) else "image"


def _adapters(shapes: Mapping[str, tuple[int, ...]], lora: Lora | None) -> dict[str, int]:
    """Parameters of an adapter, by layer."""
    if lora is None:
        return {}
    layers = {
        name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight")
    }
    return {name: lora.rank * sum(layers[name]) for name in targeted(layers, lora.targets)}


@dataclass(frozen=True)
class _Pass:
    image_tokens: int
    flops: int
    kept: int
    kept_checkpointed: int


def _passed(config: Mapping[str, Any], height: int, width: int, text_tokens: int) -> _Pass:
    """Let one sample's shapes pass through diffusers' own class."""
    from diffusers import SD3Transformer2DModel

    with FakeTensorMode():
        model = SD3Transformer2DModel.from_config(public(config))
        known = model.config
        cell = VAE_FACTOR * known.patch_size
        largest = cell * known.pos_embed_max_size
        if height % cell or width % cell or not 0 < max(height, width) <= largest or min(height, width) <= 0:
            complaint = Complaint("size", "no such picture", f"multiples of {cell} up to {largest}", f"{width}x{height}")
            raise InputError("The transformer cannot draw at this size.", [complaint])
        kept = _Kept(model)
        attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}  # noqa: SLF001  # torch counts the GPU's
        with FlopCounterMode(display=False, custom_mapping=attention) as flops, kept.watching():
            model(
                hidden_states=torch.empty(1, known.in_channels, height // VAE_FACTOR, width // VAE_FACTOR),
                encoder_hidden_states=torch.empty(1, text_tokens, known.joint_attention_dim),
                pooled_projections=torch.empty(1, known.pooled_projection_dim),
                timestep=torch.empty(1),
            )
    image_tokens = (height // cell) * (width // cell)
    into_blocks = len(kept.blocks) * (image_tokens + text_tokens) * known.num_attention_heads * known.attention_head_dim
    outside = kept.numbers - sum(kept.blocks)
    return _Pass(image_tokens, flops.get_total_flops(), kept.numbers, outside + into_blocks + max(kept.blocks))


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


class _Kept:
    """Counts what autograd saves of a pass, in fp32 numbers: each memory once, and none of the model's own."""

    def __init__(self, model: Any) -> None:
        self._own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}  # noqa: SLF001  # its identity
        self._seen: dict[int, torch.UntypedStorage] = {}  # held, so that no identity is given out again
        self.numbers = 0
        self.blocks: list[int] = []
        self._before = 0
        for block in model.transformer_blocks:
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
            yield

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own and storage._cdata not in self._seen:  # noqa: SLF001
            self._seen[storage._cdata] = storage  # noqa: SLF001
            self.numbers += storage.nbytes() // 4
        return tensor

    def _enter(self, block: nn.Module, inputs: Any) -> None:
        self._before = self.numbers

    def _leave(self, block: nn.Module, inputs: Any, outputs: Any) -> None:
        self.blocks.append(self.numbers - self._before)
