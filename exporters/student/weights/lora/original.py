"""The MMDiT's modules by the names of original checkpoints, which kohya's and ComfyUI's LoRAs have.

One original module may be several of diffusers' (queries, keys and values are one matrix there), or hold its rows in another
order (shift before scale where diffusers has scale before shift). So each is said as pieces: which of its rows make up which
module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_TOP = {
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
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


@dataclass(frozen=True)
class Piece:
    """Rows that make up a module of the student.

    Attributes:
        module: its name in the student's component.
        rows: ranges of rows, one after another: those of the source that become the module's, in its order.
    """

    module: str
    rows: tuple[tuple[int, int], ...]


def whole(module: str, rows: int) -> tuple[Piece]:
    """A module that is the source itself."""
    return (Piece(module, ((0, rows),)),)


def original_modules(rows: Mapping[str, int]) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    """The original modules of a transformer, and the pieces of each.

    Args:
        rows: how many outputs each module has, by diffusers' names.
    """
    for name, original in _TOP.items():
        if name in rows:
            yield original, _swapped(name, rows[name]) if name == "norm_out.linear" else whole(name, rows[name])
    blocks = [int(name.split(".")[1]) for name in rows if name.startswith("transformer_blocks.")]
    for i in range(max(blocks, default=-1) + 1):
        yield from _block(rows, i, last=i == max(blocks))


def _block(rows: Mapping[str, int], index: int, last: bool) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    here, there = f"transformer_blocks.{index}", f"joint_blocks.{index}"
    for part, original in _BLOCK.items():
        name = f"{here}.{part}"
        if name in rows:
            # After the last block the text's tokens are normed alone: that norm is made as the final layer's.
            swapped = last and part == "norm1_context.linear"
            yield f"{there}.{original}", _swapped(name, rows[name]) if swapped else whole(name, rows[name])
    for original, parts in _FUSED.items():
        names = [f"{here}.{part}" for part in parts if f"{here}.{part}" in rows]
        if not names:
            continue
        ends = [sum(rows[name] for name in names[: i + 1]) for i in range(len(names))]
        yield (
            f"{there}.{original}",
            tuple(Piece(name, ((end - rows[name], end),)) for name, end in zip(names, ends, strict=True)),
        )
        for i, name in enumerate(names):  # some trainers split it, and number the parts
            yield f"{there}.{original}.{i}", whole(name, rows[name])


def _swapped(module: str, rows: int) -> tuple[Piece]:
    """Shift before scale there, scale before shift here."""
    half = rows // 2
    return (Piece(module, ((half, rows), (0, half))),)
