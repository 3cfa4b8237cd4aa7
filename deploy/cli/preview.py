"""What a build would make: every choice, and sizes estimated from the student's headers."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.build.budget import Sizes, estimate, fitted
from deploy.build.plan import Plan, plan
from deploy.build.request import BuildRequest
from deploy.text import megabytes, table


def preview(request: BuildRequest) -> str:
    """What a build would make, as text; nothing is traced or written.

    Raises:
        InputError: the request cannot be fulfilled.
    """
    settled = fitted(plan(request))
    return "\n".join([*_choices(settled), "", *_graphs(settled), "", *_limits(settled), *(f"note: {n}" for n in settled.notes)])


def _choices(settled: Plan) -> list[str]:
    request, options, sampling = settled.request, settled.options, settled.sampling
    size = f"{options.width} x {options.height} px" + (" (dynamic)" if options.dynamic else "")
    coreml = [f"compute units {settled.compute_units}", f"stages {settled.stages}", f"attention {settled.attention}"]
    facts = [f"format {request.format}", f"layout {request.layout}", f"computes in {settled.compute}"]
    return [
        f"student {settled.student.path}",
        f"tier {request.tier}: {', '.join(facts + (coreml if request.format == 'coreml' else []))}",
        f"picture: {size}, {len(sampling.timesteps)} steps ({sampling.method}), T5 {'kept' if options.keep_t5 else 'dropped'}",
        "profile: " + "; ".join(f"{r.component}/{r.weights} -> {r.scheme.name}" for r in settled.profile.rules),
    ]


def _graphs(settled: Plan) -> list[str]:
    sizes = estimate(settled)
    rows: list[tuple[str, ...]] = [("graph", "parameters", "bytes", "memory")]
    for graph in settled.graphs:
        stored, memory = megabytes(sizes.stored[graph.name]), megabytes(sizes.memory[graph.name])
        rows.append((graph.name, f"{graph.parameters:,}", stored, memory))
    return table(rows)


def _limits(settled: Plan) -> list[str]:
    sizes, tier = estimate(settled), settled.tier
    folder = next(parent for parent in settled.request.output.absolute().parents if parent.exists())
    return [
        f"download: {megabytes(sizes.stored_bytes)} estimated, the tier allows {megabytes(tier.download_bytes)}",
        f"memory: {megabytes(sizes.peak_bytes)} estimated, the tier allows {megabytes(tier.memory_bytes)}",
        f"disk: {megabytes(_disk_bytes(settled, sizes))} while it is built, {megabytes(_free(folder))} free in {folder}",
    ]


def _disk_bytes(settled: Plan, sizes: Sizes) -> int:
    """Core ML graphs are written in plain fp16, too, for a while."""
    if settled.request.format == "onnx":
        return sizes.stored_bytes
    return sizes.stored_bytes + max(2 * graph.parameters for graph in settled.graphs)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
