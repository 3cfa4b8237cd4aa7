"""TAESD's own files: encoder and decoder apart, each a list of layers by number (github.com/madebyollin/taesd, ``taesd.py``).

The decoder's list begins with a clamp, which diffusers' ``AutoencoderTiny`` applies outside of it: its layers are one less.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

HALVES = ("encoder", "decoder")
_LAYER = re.compile(r"(\d+)\.((?:conv\.\d+\.|skip\.)?(?:weight|bias))")


def half_of(names: Collection[str]) -> str:
    """Which half of a small autoencoder a file's tensors are, by their names alone; nothing where they are none."""
    if not names or not all(map(_LAYER.fullmatch, names)):
        return ""
    return "encoder" if "0.weight" in names else "decoder"


def other_half(file: Path, half: str) -> Path:
    """Where the other half is: ``taesd3_encoder.safetensors`` is beside ``taesd3_decoder.safetensors``."""
    other = HALVES[1 - HALVES.index(half)]
    before, named, after = file.name.rpartition(half)
    return file.with_name(before + other + after if named else f"{other}_of_{file.name}")


def diffusers_name(name: str, half: str) -> str:
    """A tensor's name in diffusers.

    >>> diffusers_name("3.conv.0.weight", "decoder")
    'decoder.layers.2.conv.0.weight'
    """
    number, rest = name.split(".", maxsplit=1)
    return f"{half}.layers.{int(number) - (half == 'decoder')}.{rest}"
