"""What is in a student or a bundle, as plain data and as text."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from deploy.bundle.folder import open_bundle
from deploy.bundle.memory import peak_memory_bytes
from deploy.bundle.told import read_told
from deploy.text import megabytes, table
from deploy.tiers.tier import all_tiers
from exporters.guidance import Guidance, told_guidance
from quantization.errors import printable

if TYPE_CHECKING:
    from exporters.student.student import Student
    from exporters.student.weights.lora.source import Lora


def inspect_path(
    path: Path | str,
    variant: str | None = None,
    ignore_lora: bool = False,
    lora: Iterable[Lora | Path | str] = (),
    components: Mapping[str, Path | str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Describe a student, a bundle, or a picture that says what it was drawn with.

    Args:
        path: of any of them.
        variant: variant of the student's weight files.
        ignore_lora: do not say that a LoRA beside the student's weights keeps it from being used.
        lora: LoRAs to merge into the student's weights.
        components: of the student that come from elsewhere.

    Raises:
        InputError: it is neither, or is damaged.
    """
    path = Path(path)
    if (path / "manifest.json").is_file():
        return inspect_bundle(path)
    if is_picture(path):
        return {"kind": "picture", "path": str(path), **msgspec.to_builtins(read_told(path))}
    return inspect_student(path, variant, ignore_lora, lora, components)


def is_picture(path: Path) -> bool:
    """Whether a path is of a PNG file."""
    return path.suffix.lower() == ".png" and path.is_file()


def inspect_bundle(path: Path) -> dict[str, Any]:
    """A bundle's manifest, with the bytes of each graph's files."""
    bundle = open_bundle(path)
    content: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    sizes = {record.path: record.size_bytes for record in bundle.manifest.files}
    for graph, record in zip(content["graphs"], bundle.manifest.graphs, strict=True):
        graph["file_bytes"] = sum(size for name, size in sizes.items() if record.holds(name))
    totals = {
        "total_bytes": sum(sizes.values()),
        "peak_memory_bytes": peak_memory_bytes(bundle.manifest.graphs),
        "tier_memory_bytes": tier.memory_bytes if (tier := all_tiers().get(bundle.manifest.tier)) else None,
    }
    return {"kind": "bundle", "path": str(path), **totals, **content}


def inspect_student(
    path: Path,
    variant: str | None = None,
    ignore_lora: bool = False,
    lora: Iterable[Lora | Path | str] = (),
    components: Mapping[str, Path | str] = MappingProxyType({}),
) -> dict[str, Any]:
    """A student's components with parameters, bytes and types, and how it wants to be run."""
    from exporters.student.classes import component_class
    from exporters.student.weights.lora.source import as_loras

    student, notes = _open_for_inspection(path, variant, as_loras(lora), components)
    if student.adapters and not ignore_lora:
        notes.append("Whatever takes a student refuses this one for its LoRA, unless --lora names it or --ignore-lora is given")
    described = []
    for name, weights in student.weights.items():
        described.append(
            {
                "name": name,
                "tensors": len(weights),
                "parameters": sum(w.elements for w in weights.values()),
                "bytes": sum(w.elements * w.dtype.itemsize for w in weights.values()),
                "types": sorted({str(w.dtype) for w in weights.values()}),
            }
        )
    transformer, vae, defaults = student.configs["transformer"], student.configs["vae"], student.defaults
    keys = (
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "qk_norm",
        "dual_attention_layers",
        "pos_embed_max_size",
    )
    return {
        "kind": "student",
        "path": str(path),
        "components": described,
        "parameters": sum(c["parameters"] for c in described),
        "bytes": sum(c["bytes"] for c in described),
        "transformer": {key: transformer[key] for key in keys},
        "vae": {"class": component_class("vae", vae)} | {key: vae[key] for key in ("scaling_factor", "shift_factor")},
        "defaults": {name: getattr(defaults, name) for name in defaults.__dataclass_fields__},
        "scheduler": {
            key: student.configs["scheduler"].get(key) for key in ("shift", "use_dynamic_shifting", "stochastic_sampling")
        },
        "loras": [{"name": one.name, "sha256": one.sha256(), "scale": one.scale} for one in student.loras],
        "licences": sorted(student.licences()),
        "notes": [*student.notes, *filter(None, [student.guidance_note]), *notes],
    }


def _open_for_inspection(
    path: Path, variant: str | None, lora: tuple[Lora, ...], components: Mapping[str, Path | str]
) -> tuple[Student, list[str]]:
    """A student as builds open it: with T5 or, where only that keeps it from being used, without; and then why."""
    from exporters.errors import StudentError
    from exporters.student.open import open_student
    from exporters.student.weights.templates import OPTIONAL_COMPONENTS

    try:
        return open_student(path, variant, ignore_lora=True, lora=lora, components=components), []
    except StudentError as error:
        try:
            student = open_student(path, variant, OPTIONAL_COMPONENTS, True, lora, components)
        except StudentError:
            raise error from None
        more = f" and {len(error.complaints) - 1} more" if len(error.complaints) > 1 else ""
        why = f": {error.complaints[0]}{more}" if error.complaints else ""
        return student, [f"text_encoder_3 (T5) is there and cannot be used; builds without it (--drop-t5) can be made{why}"]


def render(content: dict[str, Any], with_notes: bool = True) -> str:
    """The description as aligned text.

    Args:
        content: of :func:`inspect_path`.
        with_notes: whether to end in what whoever uses it should know.
    """
    if content["kind"] == "picture":
        return "\n".join(printable(f"{name}: {value}") for name, value in content.items() if name != "kind")
    lines = _render_bundle(content) if content["kind"] == "bundle" else _render_student(content)
    lines += _notes(content) if with_notes else []
    return "\n".join(printable(line) for line in lines)


def _render_student(content: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [("component", "tensors", "parameters", "bytes", "types")]
    rows += [
        (c["name"], str(c["tensors"]), f"{c['parameters']:,}", megabytes(c["bytes"]), ", ".join(c["types"]))
        for c in content["components"]
    ]
    rows.append(("all", "", f"{content['parameters']:,}", megabytes(content["bytes"]), ""))
    lines = [f"student {content['path']}", "", *table(rows), ""]
    lines += [
        f"{title}: " + ", ".join(f"{key} {value}" for key, value in content[title].items() if value is not None)
        for title in ("transformer", "vae", "scheduler", "defaults")
    ]
    return [*lines, *_render_loras(content["loras"]), f"licences: {', '.join(content['licences']) or 'none found'}"]


def _render_loras(loras: list[dict[str, Any]]) -> list[str]:
    return [f"LoRA merged: {one['name']}, scale {one['scale']:g}, sha256:{one['sha256']}" for one in loras]


def _notes(content: dict[str, Any]) -> list[str]:
    return [f"note: {note}" for note in content["notes"]]


def _render_bundle(content: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [("graph", "parameters", "bytes", "memory", "parity", "inputs", "outputs")]
    for graph in content["graphs"]:
        parity = "not measured" if graph["parity_db"] is None else f"{graph['parity_db']:.1f} dB"
        ports = [
            "  ".join(f"{p['name']}[{','.join(map(str, p['shape']))}]" for p in graph[side]) for side in ("inputs", "outputs")
        ]
        rows.append(
            (
                graph["name"],
                f"{graph['parameters']:,}",
                megabytes(graph["file_bytes"]),
                megabytes(graph["memory_bytes"]),
                parity,
                *ports,
            )
        )
    picture, sampling, text = content["picture"], content["sampling"], content["text"]
    sizes = " or ".join(f"{one['width']} x {one['height']}" for one in (picture, *picture["other_sizes"]))
    size = f"{sizes} px" + (" (dynamic)" if picture["dynamic"] else "")
    return [
        f"bundle {content['path']}  {megabytes(content['total_bytes'])}",
        "",
        *table(rows),
        "",
        ", ".join(f"{key} {content[key]}" for key in ("tier", "model_format", "layout", "precision", "compute")),
        *_render_programs(content),
        *_render_wide(content),
        *_render_needs(content),
        "profile: " + "; ".join(f"{r['component']}/{r['weights']} -> {r['scheme']}" for r in content["profile"]),
        *([f"kept in floating point: {_reasons(content['kept'])}"] if content["kept"] else []),
        f"memory: {megabytes(content['peak_memory_bytes'])} predicted, {_allowed(content['tier_memory_bytes'])}"
        + "".join(f"; {g['name']} in {g['bands']} bands" for g in content["graphs"] if g["bands"] > 1),
        f"picture: {size}",
        f"sampling: {sampling['method']}, sigmas {', '.join(f'{s:.4g}' for s in sampling['sigmas'])}",
        f"guidance: {told_guidance(Guidance(**sampling['guidance'])) or 'none'}",
        f"text: T5 {text['t5']}, max sequence length {text['max_sequence_length']}",
        f"student: {content['student']['name']}, {content['student']['fingerprint']}",
        *_render_loras(content["student"]["loras"]),
        f"licences: {', '.join(content['student']['licences']) or 'none found'}",
        "made with: " + ", ".join(f"{name} {version}" for name, version in content["created_with"].items()),
    ]


def _allowed(memory_bytes: int | None) -> str:
    return "by a tier that is not known here" if memory_bytes is None else f"the tier allows {megabytes(memory_bytes)}"


def _render_programs(content: dict[str, Any]) -> list[str]:
    """What only Core ML bundles have."""
    if content["model_format"] != "coreml":
        return []
    stages = [f"{graph['name']} in {len(graph['stages'])}" for graph in content["graphs"] if len(graph["stages"]) > 1]
    client = content["client_schedule"]
    return [
        *([_client_line(client)] if client else []),
        f"compute units: {content['compute_units']}; stages: {', '.join(stages) or 'one for each graph'}",
        f"attention: {content['attention'] or 'fused'}",
    ]


def _render_wide(content: dict[str, Any]) -> list[str]:
    """What computes in fp32 beside fp16: by a rule, or for want of range or digits."""
    if content["compute"] != "fp16":
        return []
    wide = [f"{len(graph['fp32_operators'])} of {graph['name']}" for graph in content["graphs"] if graph["fp32_operators"]]
    return [f"computed in fp32, fp16 is too narrow for them or a rule says so: {', '.join(wide) or 'none'}"]


def _render_needs(content: dict[str, Any]) -> list[str]:
    """What it takes to run an ONNX bundle."""
    parts = [f"opset {content['opset']}"] if content["opset"] else []
    parts += [f"{name} {least} or newer" for name, least in content["requires"].items()]
    return [f"needs: {', '.join(parts)}"] if parts else []


def _client_line(client: dict[str, Any]) -> str:
    return f"the Swift client is told: stepCount {client['steps']}, schedulerTimestepShift {client['shift']:g}"


def _reasons(kept: list[dict[str, str]]) -> str:
    """How many weights kept their floating-point form, for each reason."""
    counts = collections.Counter(f"{entry['component']}, {entry['scheme']}: {entry['reason']}" for entry in kept)
    return "; ".join(f"{count} of {reason}" for reason, count in counts.items())
