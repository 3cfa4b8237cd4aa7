"""Learning curves of a run: what each stage measured while it learned, against the time that it took."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["SHOWN", "Curve", "curve", "learning_curves"]

#: What is shown of a stage: the first of these that it records. ``gap`` is the matching part beside the teacher's velocity.
SHOWN = ("psnr", "gap", "loss")
POINTS, COLUMNS, PANEL_INCHES = 80, 4, (2.6, 2.0)

Curve = tuple[np.ndarray, np.ndarray]


def curve(steps: Sequence[Mapping[str, float]], processes: int) -> tuple[str, Curve] | None:
    """What a stage recorded: its name, and CPU minutes of all processes with medians of equally many steps.

    Args:
        steps: what the first process recorded of each.
        processes: that shared a step.
    """
    minutes = processes * np.cumsum([step["cpu_seconds"] for step in steps]) / 60
    for name in SHOWN:
        at = [index for index, step in enumerate(steps) if name in step]
        if not at:
            continue
        parts = np.array_split(at, min(POINTS, len(at)))
        medians = [np.median([steps[index][name] for index in part]) for part in parts]
        return name, (np.array([minutes[part[-1]] for part in parts]), np.array(medians))
    return None


def learning_curves(curves: Mapping[str, tuple[str, Curve]]) -> bytes:
    """A PNG with a panel for each stage.

    Args:
        curves: what each stage recorded, by the stage's name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, max(1, len(curves)))
    rows = max(1, math.ceil(len(curves) / columns))
    figure = Figure(figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained", dpi=110)
    panels: list[Any] = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for panel, (stage, (name, (minutes, values))) in zip(panels, curves.items(), strict=False):
        panel.plot(minutes, values, linewidth=1)
        panel.set_title(stage, fontsize=9)
        panel.set_xlabel("CPU minutes", fontsize=8)
        panel.set_ylabel({"psnr": "PSNR, dB"}.get(name, name), fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.25)
    for empty in panels[len(curves) :]:
        empty.set_axis_off()
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()
