"""The recipe of the captioned world from nothing, each stage of a step or two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distillation.run.order import Order
from distillation.run.start import follow

SMALL = {
    "text": ("steps=2", "batch=4"),
    "vae": ("steps=2", "batch=4"),
    "teacher": ("steps=2", "batch=4", "pictures=70", "layers=2"),
    "follow-4": ("steps=2", "batch=4", "trajectories=4", "teacher_steps=4"),
    "match-4": ("steps=2", "batch=4", "trajectories=4", "teacher_steps=4", "fake_steps=1", "fake_warmup=1"),
    "low-4": ("steps=1", "batch=4", "trajectories=4", "teacher_steps=4", "fake_steps=1", "fake_warmup=0"),
    "high-4": ("steps=1", "batch=4", "trajectories=4", "teacher_steps=4", "fake_steps=1", "fake_warmup=0"),
    "split-4": ("prompts=2", "ratios=[0.0, 0.5]"),
    "w4": ("steps=2", "batch=4"),
    "follow-2": ("steps=1", "batch=4", "trajectories=4", "teacher_steps=4"),
    "match-2": ("steps=1", "batch=4", "trajectories=4", "teacher_steps=4", "fake_steps=1", "fake_warmup=0"),
}


def follow_shapes(
    folder: Path, take_up: Path | None = None, changes: Sequence[str] = (), device: str = "cpu", stop_after: str = ""
) -> Path:
    """Follow it."""
    small = [f"{stage}.{change}" for stage, those in SMALL.items() for change in those]
    asked = (*small, "judged=2", "processes=1", *changes)
    order = Order("shapes-cpu", None, folder, asked, stop_after, device=device, take_up=take_up)
    assert follow(order) == 0
    return folder
