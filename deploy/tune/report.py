"""What a search found, as files: the Pareto front as a picture and as CSV, and every weight's options."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.errors import Complaint, InputError
from deploy.tune.choose import Point, Tuned
from quantization.files import check_writable, new_file, write_text, writing

FILES = ("pareto.csv", "pareto.png", "sensitivity.csv")
EQUAL_DB = 100.0  # pictures that differ less are the same in any format


def check_report(folder: Path) -> None:
    """Refuse a place that a report cannot be written to, before the work.

    Raises:
        InputError: it is no folder, or its files cannot be written.
    """
    headline = "The report cannot be written."
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(headline, [Complaint("--report", "is no folder", got=str(folder))], "give another folder")
    if folder.is_dir():
        for name in FILES:
            check_writable(folder / name, "--report", headline)


def write_report(tuned: Tuned, folder: Path) -> list[Path]:
    """Write ``pareto.csv``, ``pareto.png`` and ``sensitivity.csv`` into a folder; returns what was written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    front, plot, options = (folder / name for name in FILES)
    return [_pareto_csv(tuned, front), _pareto_png(tuned, plot), _sensitivity_csv(tuned, options)]


def table(tuned: Tuned) -> str:
    """Every choice that was drawn with, smallest first, as lines of text; the chosen one is starred."""
    lines = ["  choice             bytes   time, ms  predicted  drawn  5th percentile  latents (dB)"]
    for point in sorted(tuned.points, key=lambda point: point.size_bytes):
        assert point.measured is not None
        star = "*" if point is tuned.chosen else " "
        measured = point.measured
        time = _milliseconds(tuned, point)
        lines.append(
            f"{star} {point.name:12} {point.size_bytes:11d}  {time:9.4g}  {point.predicted_db:8.1f} {picture_db(point):6.1f}"
            f"  {measured.psnr_p5_db:14.1f}  {measured.latent_db:7.1f}"
        )
    return "\n".join(
        [*lines, "time: of a picture's products with weights on the tier, predicted (flash-deploy predict), not measured"]
    )


def _milliseconds(tuned: Tuned, point: Point) -> float:
    """The time of the products of one picture, predicted."""
    return 1000 * point.time * tuned.float_seconds


def _pareto_csv(tuned: Tuned, file: Path) -> Path:
    head = [
        "choice",
        "bytes",
        "predicted_ms",
        "relative_time",
        "predicted_db",
        "picture_db",
        "psnr_mean_db",
        "psnr_p5_db",
        "latent_db",
        "chosen",
    ]
    rows: list[list[Any]] = [head]
    for point in tuned.points:
        assert point.measured is not None
        measured = point.measured
        figures = (point.time, point.predicted_db, picture_db(point), measured.psnr_db, measured.psnr_p5_db, measured.latent_db)
        latency = f"{_milliseconds(tuned, point):.6g}"
        rows.append([point.name, point.size_bytes, latency, *(f"{figure:.3f}" for figure in figures), int(point is tuned.chosen)])
    return _write_csv(file, rows)


def _sensitivity_csv(tuned: Tuned, file: Path) -> Path:
    rows: list[list[Any]] = [["component", "weight", "scheme", "bytes", "relative_time", "predicted_mean_square", "chosen"]]
    for (component, name), options in tuned.options.items():
        for option in options:
            taken = int(option.scheme == tuned.chosen.choice[component, name])
            figures = [option.size_bytes, f"{option.time:.6g}", f"{option.error:.6g}", taken]
            rows.append([component, name, option.scheme.name, *figures])
    return _write_csv(file, rows)


def _write_csv(file: Path, rows: list[list[Any]]) -> Path:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    write_text(file, out.getvalue())
    return file


def picture_db(point: Point) -> float:
    """PSNR of the mean square error over all pictures."""
    assert point.measured is not None
    return -10 * math.log10(max(point.measured.mean_square, 1e-12))


def _pareto_png(tuned: Tuned, file: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    top = max((picture_db(point) for point in tuned.points if picture_db(point) < EQUAL_DB), default=EQUAL_DB) + 8

    def height(point: Point) -> float:
        """Its dB; equal pictures lie on the upper edge."""
        return min(picture_db(point), top)

    axes: list[tuple[str, Callable[[Point], float]]] = [
        ("size of all weights, MB", lambda point: point.size_bytes / 1e6),
        ("products of a picture on the tier, predicted, ms", lambda point: _milliseconds(tuned, point)),
    ]
    for panel, (label, measure) in zip(figure.subplots(1, 2), axes, strict=True):
        for searched, marker, colour, name in ((False, "s", "tab:gray", "uniform"), (True, "o", "tab:blue", "searched")):
            of_kind = [point for point in tuned.points if point.name.startswith("searched") == searched]
            points = sorted(of_kind, key=lambda point: point.size_bytes)
            panel.plot(
                [measure(point) for point in points],
                [height(point) for point in points],
                marker,
                color=colour,
                label=name,
                linestyle="-" if searched else "none",
            )
        for point in tuned.points:
            if not point.name.startswith("searched"):
                panel.annotate(point.name, (measure(point), height(point)), xytext=(4, 4), textcoords="offset points", fontsize=8)
        panel.plot(measure(tuned.chosen), height(tuned.chosen), "*", color="tab:red", markersize=14, label="chosen")
        panel.set_xlabel(label)
        panel.set_ylabel("picture PSNR against the student, dB (upper edge: equal)")
        panel.grid(alpha=0.3)
        panel.legend()
    with new_file(file) as stream:
        FigureCanvasAgg(figure).print_png(stream)
    return file
