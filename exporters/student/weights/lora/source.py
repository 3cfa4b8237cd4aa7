"""A LoRA that is asked for: a file or a PEFT folder, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exporters.errors import Complaint, StudentError


@dataclass(frozen=True)
class Lora:
    """A LoRA to merge into a student.

    Attributes:
        path: a safetensors file, or a folder that holds one (as PEFT's ``adapter_model.safetensors``).
        scale: what its product is multiplied by, beside its own alpha: ``lora_scale`` of diffusers' ``fuse_lora``.

    Raises:
        StudentError: the scale is no finite number.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not math.isfinite(self.scale):
            complaint = Complaint("--lora", "the scale is wrong", "a finite number", repr(self.scale))
            raise StudentError(f"{self.path} cannot be merged.", [complaint], "write it as FILE:SCALE, for example FILE:0.125")
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "scale", float(self.scale))

    def __str__(self) -> str:
        """As :func:`parse_lora` reads it back, whatever is in the file's name."""
        return f"{self.path}:{self.scale!r}"


def parse_lora(text: str) -> Lora:
    r"""A LoRA written as ``FILE`` or ``FILE:SCALE``; the last colon before a number splits.

    >>> parse_lora("hyper.safetensors:0.125").scale, str(parse_lora(r"C:\x.safetensors").path)
    (0.125, 'C:\\x.safetensors')

    Raises:
        StudentError: there is no file in it, or the scale is not finite.
    """
    head, colon, tail = text.rpartition(":")
    try:
        path, scale = (head, float(tail)) if colon else (text, 1.0)
    except ValueError:
        path, scale = text, 1.0
    if not path:
        complaint = Complaint("--lora", "names no file", "FILE or FILE:SCALE", repr(text))
        raise StudentError("There is no LoRA to merge.", [complaint], "write it as FILE:SCALE, for example FILE:0.125")
    return Lora(Path(path), scale)


def as_loras(given: Iterable[Lora | Path | str]) -> tuple[Lora, ...]:
    """LoRAs as they may be given: text is read as on the command line, a path has the scale 1.

    Raises:
        StudentError: one is written wrongly.
    """
    return tuple(
        one if isinstance(one, Lora) else Lora(one) if isinstance(one, Path) else parse_lora(one)
        for one in ([given] if isinstance(given, Lora | Path | str) else given)
    )
