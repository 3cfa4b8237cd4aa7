"""The rows of the conditioner's table: which layer's, and what each is for; light to import.

For each block in turn and then the output norm (diffusers ``normalization.py``):

================================  ===============================================================================
``norm1``                         shift, scale, gate (attention); shift, scale, gate (feed-forward)
``norm1`` with dual attention     the same six, then shift, scale, gate of the second attention
``norm1_context``                 like ``norm1``; in the last block scale, shift
``norm_out``                      scale, shift
================================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

_SIX = ("shift", "scale", "gate", "shift", "scale", "gate")
_NINE = (*_SIX, "shift", "scale", "gate")
_TWO = ("scale", "shift")


def modulation_layout(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each AdaLN layer with the kinds of its rows, in the order of the table.

    >>> config = {"num_layers": 1, "dual_attention_layers": []}
    >>> [(name, len(kinds)) for name, kinds in modulation_layout(config)]
    [('transformer_blocks.0.norm1', 6), ('transformer_blocks.0.norm1_context', 2), ('norm_out', 2)]
    """
    layers = config["num_layers"]
    for i in range(layers):
        yield f"transformer_blocks.{i}.norm1", _NINE if i in config["dual_attention_layers"] else _SIX
        yield f"transformer_blocks.{i}.norm1_context", _TWO if i == layers - 1 else _SIX
    yield "norm_out", _TWO


def modulation_count(config: Mapping[str, Any]) -> int:
    """How many modulation vectors one step has."""
    return sum(len(kinds) for _, kinds in modulation_layout(config))


def gates_of(config: Mapping[str, Any], blocks: Collection[int]) -> list[int]:
    """The rows of some blocks' gates: where they are 0, those blocks leave both token streams as they are.

    >>> config = {"num_layers": 2, "dual_attention_layers": [0]}
    >>> gates_of(config, [0]), gates_of(config, [1])
    ([2, 5, 8, 11, 14], [17, 20])
    """
    rows, first = [], 0
    for name, kinds in modulation_layout(config):
        if name != "norm_out" and int(name.split(".")[1]) in blocks:
            rows += [first + row for row, kind in enumerate(kinds) if kind == "gate"]
        first += len(kinds)
    return rows
