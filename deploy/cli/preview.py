"""What a build would make: every choice, and sizes estimated from the student's headers."""

from __future__ import annotations

import shutil

from deploy.build.budget import Sizes, estimate, estimated_disk_bytes, fitted
from deploy.build.plan import Plan, plan
from deploy.build.request import BuildRequest
from deploy.text import megabytes, table
from exporters.guidance import told_guidance


def preview(request: BuildRequest) -> str:
    """What a build would make, as text; nothing is traced or written.

    Raises:
        InputError: the request cannot be fulfilled.
    """
    settled = fitted(plan(request))
    sizes = estimate(settled)
    notes = [f"note: {note}" for note in settled.notes]
    return "\n".join([*_choices(settled), "", *_graphs(settled, sizes), "", *_limits(settled, sizes), *notes])


def _choices(settled: Plan) -> list[str]:
    request, options, sampling = settled.request, settled.options, settled.sampling
    size = " or ".join(f"{width} x {height}" for height, width in options.picture_sizes) + " px"
    size += " (dynamic)" if options.dynamic else ""
    coreml = [f"compute units {settled.compute_units}", f"stages {settled.stages}", f"attention {settled.attention}"]
    facts = [f"format {request.format}", f"layout {request.layout}", f"computes in {settled.compute}"]
    return [
        f"student {settled.student.path}",
        f"tier {request.tier}: {', '.join(facts + (coreml if request.format == 'coreml' else []))}",
        f"picture: {size}, {len(sampling.timesteps)} steps ({sampling.method}), T5 {'kept' if options.keep_t5 else 'dropped'}",
        f"guidance: {told_guidance(sampling.guidance) or 'none'}",
        "profile: " + "; ".join(f"{r.component}/{r.weights} -> {r.scheme.name}" for r in settled.profile.rules),
    ]


def _graphs(settled: Plan, sizes: Sizes) -> list[str]:
    rows: list[tuple[str, ...]] = [("graph", "parameters", "bytes", "memory")]
    for graph in settled.graphs:
        stored, memory = megabytes(sizes.stored[graph.name]), megabytes(sizes.memory[graph.name])
        name = f"{graph.name} in {graph.bands} bands" if graph.bands > 1 else graph.name
        rows.append((name, f"{graph.parameters:,}", stored, memory))
    return table(rows)


def _limits(settled: Plan, sizes: Sizes) -> list[str]:
    tier = settled.tier
    folder = next(parent for parent in settled.request.output.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    return [
        f"download: {megabytes(sizes.stored_bytes)} estimated, the tier allows {megabytes(tier.download_bytes)}",
        f"memory: {megabytes(sizes.peak_bytes)} estimated, the tier allows {megabytes(tier.memory_bytes)}",
        f"disk: {megabytes(estimated_disk_bytes(settled, sizes))} while it is built, {megabytes(free)} free in {folder}",
    ]
