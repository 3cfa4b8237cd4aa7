"""What a tensor of a LoRA file is, by its name: a half of some module's product, its alpha, DoRA's lengths, a bias.

Whoever wrote the file: diffusers and PEFT (``lora_A.weight``, with or without an adapter's name in it), kohya
(``lora_down.weight``), older diffusers (``lora.down.weight``, ``processor.to_q_lora.down.weight``,
``lora_linear_layer.down.weight``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Part = Literal["down", "up", "alpha", "magnitude", "bias"]

_HALF = r"[._](?:lora|lora_linear_layer)[._](?P<half>down|up|A|B)"
_ADAPTER = r"(?:\.[^.]+)?"  # PEFT's name of the adapter, where a state was saved as it is
_PATTERNS: tuple[tuple[re.Pattern[str], Part | None], ...] = (
    (re.compile(rf"(?P<module>.+?){_HALF}{_ADAPTER}\.weight"), None),
    (re.compile(rf"(?P<module>.+?)(?:{_HALF}(?:\.weight)?)?\.alpha"), "alpha"),
    (re.compile(rf"(?P<module>.+?)\.(?:lora_magnitude_vector{_ADAPTER}(?:\.weight)?|dora_scale)"), "magnitude"),
    (re.compile(rf"(?P<module>.+?)\.lora_(?:B|up){_ADAPTER}\.bias"), "bias"),
)
_HALVES: dict[str, Part] = {"A": "down", "down": "down", "B": "up", "up": "up"}

_FOREIGN = {
    "LoHa": re.compile(r"[._]hada_"),
    "LoKr": re.compile(r"[._]lokr_"),
    "IA3": re.compile(r"[._]ia3_"),
    "OFT": re.compile(r"[._](?:oft|boft)_"),
    "GLoRA": re.compile(r"[._](?:glora|a1|a2|b1|b2)\.weight$"),
    "VeRA": re.compile(r"[._]vera_"),
    "LoCon with a middle factor": re.compile(r"\.lora_mid\."),
    "LoRA of an embedding": re.compile(r"\.lora_embedding_[AB]"),
    "difference of whole weights": re.compile(r"\.diff(?:_b)?$"),
}


def split(name: str) -> tuple[str, Part] | None:
    """The module that a tensor belongs to, and what it is to it; none for what is no part of a LoRA.

    >>> split("transformer.transformer_blocks.0.attn.to_q.lora_A.weight")
    ('transformer.transformer_blocks.0.attn.to_q', 'down')
    >>> split("transformer_blocks.0.attn.processor.to_q_lora.up.weight")
    ('transformer_blocks.0.attn.to_q', 'up')
    >>> split("lora_unet_joint_blocks_0_x_block_attn_qkv.alpha")
    ('lora_unet_joint_blocks_0_x_block_attn_qkv', 'alpha')
    """
    name = name.replace(".processor.", ".")
    for pattern, part in _PATTERNS:
        if match := pattern.fullmatch(name):
            return match["module"], part or _HALVES[match["half"]]
    return None


def other_kind(names: Iterable[str]) -> str:
    """What a file is that is trained beside weights as LoRAs are, but is none; empty for a LoRA.

    >>> other_kind(["lycoris_transformer_blocks_0_attn_to_q.lokr_w1"]), other_kind(["a.lora_A.weight"])
    ('LoKr', '')
    """
    names = list(names)
    return next((kind for kind, pattern in _FOREIGN.items() if any(pattern.search(name) for name in names)), "")
