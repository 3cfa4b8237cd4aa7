"""The sections of ``efficiencies.toml``, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantization.files import write_text

FILE = Path(__file__).with_name("efficiencies.toml")


def efficiency_toml(name: str, source: str, shares: Mapping[str, Any], spread: tuple[float, float]) -> str:
    """A section of ``efficiencies.toml``."""

    def number(value: float) -> str:
        return f"{value:.3g}"

    lines = [f"[{name}]", f'source = "{source}"']
    for key, value in shares.items():
        if isinstance(value, Mapping):
            inner = ", ".join(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {number(v)}" for k, v in value.items())
            lines.append(f"{key} = {{ {inner} }}")
        else:
            lines.append(f"{key} = {number(value)}")
    return "\n".join([*lines, f"actual_over_predicted = [{spread[0]:.2f}, {spread[1]:.2f}]", ""])


def write_section(file: Path, name: str, text: str) -> None:
    """Replace one section of ``efficiencies.toml``, or append it."""
    before = file.read_text("utf-8") if file.exists() else ""
    sections = before.split("\n[")
    kept = [part if i == 0 else f"[{part}" for i, part in enumerate(sections)]
    kept = [part.rstrip() + "\n" for part in kept if part.strip() and not part.lstrip().startswith(f"[{name}]")]
    write_text(file, "\n".join([*kept, text]))
