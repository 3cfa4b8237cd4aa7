"""The page that a model hub shows of a bundle, as Markdown with a YAML head. Needs no torch.

What comes from the student or from whoever built the bundle is foreign text: it never becomes markup.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.folder import PAGE, Bundle
from deploy.bundle.manifest import GraphRecord, Manifest
from deploy.bundle.memory import peak_memory_bytes
from deploy.card.licences import OTHER, Licence, find_licence
from deploy.page.page import INDEX
from deploy.runtime.sessions import COREML_EXTRA
from deploy.text import megabytes
from deploy.tiers.tier import all_tiers
from exporters.choices import PROMPTS
from exporters.guidance import told_guidance
from exporters.reference.decibels import EQUAL_DB
from quantization.errors import printable

PIPELINE, LIBRARY = "text-to-image", "flash-deploy"
EXAMPLE = PROMPTS[0]
MOST_RULES = 12
YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
FORMATS = {"onnx": "ONNX", "coreml": "Core ML"}


@dataclass(frozen=True)
class Sample:
    """A picture on the page: its path from there, and what it was drawn of."""

    path: str
    prompt: str
    seed: int


def page(bundle: Bundle, samples: Sequence[Sample] = (), base_models: Sequence[str] = (), licence: str | None = None) -> str:
    """The whole page.

    Args:
        bundle: an opened bundle.
        samples: pictures that it has drawn.
        base_models: what the student was made from, as the hub names it.
        licence: as the hub names it; by default what the bundle's licence texts say.
    """
    manifest = bundle.manifest
    card_licence = find_licence(manifest.student.licences) if licence is None else Licence(licence)
    sections = [
        _head(manifest, base_models, card_licence),
        _opening(manifest),
        _pictures(samples),
        _how_to_run(manifest, samples[0] if samples else Sample("", EXAMPLE, 0)),
        _what_it_is(manifest),
        _graphs(manifest),
        _weights(manifest),
        _notes(manifest),
        _licences(manifest, card_licence),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def escaped(text: str) -> str:
    r"""Foreign text as one line of Markdown that shows it as it is.

    >>> print(escaped("1. a|b <i>*c*</i>\nhttps://x.org"))
    1\. a\|b \<i\>\*c\*\</i\> https\://x.org
    """
    line = " ".join(printable(text).split())
    line = re.sub(r"[\\`*_{}\[\]<>#|~$&!@]", r"\\\g<0>", line)
    line = re.sub(r"(?i)\b(https?|ftp)://|\bwww\.", lambda match: match[0].replace(":", r"\:").replace("www.", r"www\."), line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)|^([-+=])", lambda match: f"{match[1] or ''}\\{match[2] or match[3]}", line)


def _head(manifest: Manifest, base_models: Sequence[str], licence: Licence) -> str:
    """Strings of JSON are strings of YAML too."""
    lines = ["---", f"license: {_quoted(licence.id)}"]
    if licence.id == OTHER:
        lines.append(f"license_name: {_quoted(licence.name or ('of-the-student' if licence.file else 'not-stated'))}")
        lines += [f"license_link: {_quoted(licence.file)}"] if licence.file else []
    lines += [f"pipeline_tag: {PIPELINE}", f"library_name: {LIBRARY}"]
    if base_models:
        lines += ["base_model:", *(f"- {_quoted(name)}" for name in base_models)]
    own = [LIBRARY, manifest.model_format, "stable-diffusion-3", "few-step", manifest.tier]
    own += [] if manifest.layout == "native" else [manifest.layout]
    return "\n".join([*lines, "tags:", *(f"- {_quoted(tag)}" for tag in own), "---"])


def _quoted(text: str) -> str:
    plain = " ".join(printable(text).split())
    is_word = re.fullmatch(r"[a-z][\w./+-]*", plain, re.ASCII) is not None and plain not in YAML_WORDS
    return plain if is_word else json.dumps(plain, ensure_ascii=False)


def _opening(manifest: Manifest) -> str:
    tier = all_tiers().get(manifest.tier)
    described = f" ({escaped(tier.description)})" if tier is not None else ""
    steps, picture = len(manifest.sampling.timesteps), manifest.picture
    return (
        f"# {escaped(manifest.student.name)} for {escaped(manifest.tier)}\n\n"
        "A few-step text-to-image student of the Stable Diffusion 3 family, "
        f"exported for **{escaped(manifest.tier)}**{described}: "
        f"{picture.width} x {picture.height} px in {steps} {'step' if steps == 1 else 'steps'}, "
        f"{megabytes(_total_bytes(manifest))} in {FORMATS[manifest.model_format]}."
    )


def _pictures(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    rows = [f"| ![{escaped(sample.prompt)}]({sample.path}) | {escaped(sample.prompt)} | {sample.seed} |" for sample in samples]
    return "\n".join(["## Pictures", "", "Drawn with this bundle.", "", "| | prompt | seed |", "|---|---|---|", *rows])


def _how_to_run(manifest: Manifest, shown: Sample) -> str:
    """The commands draw the first picture again."""
    said = " ".join(printable(shown.prompt).split())
    lines = ["## How to run", "", "`bundle` is the folder with these files.", ""]
    if manifest.layout == "swift":
        lines += [f"In Apple's Swift `StableDiffusion3Pipeline`: the bundle's `{PAGE}` says how. On any machine:", ""]
    lines += [
        "```sh",
        _install(manifest),
        f"flash-deploy generate bundle {shlex.quote(said)} --seed {shown.seed} -o image.png",
        "```",
    ]
    lines += ["", "```python", "from flash_deploy import Pipeline", ""]
    quoted = json.dumps(said, ensure_ascii=False)
    lines += [f'pictures = Pipeline("bundle").generate({quoted}, seed={shown.seed})  # {_shape(manifest)}', "```"]
    if any(record.path == INDEX for record in manifest.files):
        lines += [
            "",
            "In a browser, with the page that the bundle holds:",
            "",
            "```sh",
            "flash-deploy serve bundle --open",
            "```",
        ]
    if manifest.layout == "optimum":
        loaded = 'ORTStableDiffusion3Pipeline.from_pretrained("bundle")'
        lines += ["", f"It also loads in optimum's `{loaded}`."]
    lines += ["", "`flash-deploy verify bundle` checks every file against its checksum."]
    return "\n".join(lines)


def _install(manifest: Manifest) -> str:
    if manifest.model_format == "coreml":
        return COREML_EXTRA
    tier = all_tiers().get(manifest.tier)
    fast = tier is not None and tier.runtimes[0] == "openvino"
    return "pip install 'flash-deploy[openvino]'" if fast else "pip install flash-deploy"


def _shape(manifest: Manifest) -> str:
    return f"[1, {manifest.picture.height}, {manifest.picture.width}, 3] in [0, 1]"


def _what_it_is(manifest: Manifest) -> str:
    picture, sampling, text = manifest.picture, manifest.sampling, manifest.text
    tier, sigmas = all_tiers().get(manifest.tier), ", ".join(f"{sigma:.4g}" for sigma in sampling.sigmas)
    memory = f"{megabytes(peak_memory_bytes(manifest.graphs))} predicted"
    memory += f"; the tier allows {megabytes(tier.memory_bytes)}" if tier is not None else ""
    steps = {"euler": "Euler", "renoise": "adds noise anew after each step", "dpmpp": "DPM-Solver++"}[sampling.method]
    sizes = " or ".join(f"{width} x {height}" for height, width in picture.sizes)
    size = f"{sizes} px" + (f", or any up to {picture.largest} px" if picture.dynamic else "")
    tokens = text.max_sequence_length
    t5 = f"T5 with {tokens} tokens" if text.t5 == "kept" else f"T5 dropped: {tokens} null tokens stand in its place"
    facts = {
        "format": f"{FORMATS[manifest.model_format]}, layout {manifest.layout}, computes in {manifest.compute}{_units(manifest)}",
        "picture": size,
        "sampling": f"{steps}; noise levels {sigmas}",
        "guidance": told_guidance(sampling.guided) or "none: it must be distilled into the student",
        "text encoders": f"two CLIP; {t5}",
        "download": megabytes(_total_bytes(manifest)),
        "memory": memory,
        "runs with": ", ".join(f"{name} {version} or newer" for name, version in manifest.requires.items()),
        "student": f"{manifest.student.name}, {manifest.student.fingerprint}",
        "LoRA merged": ", ".join(f"{one.name} at scale {one.scale:g}" for one in manifest.student.loras),
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.created_with.items()),
        "in Apple's client": _client(manifest),
    }
    rows = [f"| {name} | {escaped(fact)} |" for name, fact in facts.items() if fact]
    return "\n".join(["## What it is", "", "| | |", "|---|---|", *rows])


def _units(manifest: Manifest) -> str:
    return f", for {manifest.compute_units}" if manifest.compute_units is not None else ""


def _client(manifest: Manifest) -> str:
    schedule = manifest.client_schedule
    if schedule is None:
        return ""
    return f"stepCount {schedule.steps}, schedulerTimestepShift {schedule.shift:g}"


def _total_bytes(manifest: Manifest) -> int:
    return sum(record.size_bytes for record in manifest.files)


def _graphs(manifest: Manifest) -> str:
    head = ["| graph | parameters | files | memory | against diffusers in fp32 |", "|---|---|---|---|---|"]
    rows = []
    for graph in manifest.graphs:
        size = sum(record.size_bytes for record in manifest.files if graph.holds(record.path))
        cells = [escaped(graph.name), f"{graph.parameters:,}", megabytes(size), megabytes(graph.memory_bytes), _parity(graph)]
        rows.append(f"| {' | '.join(cells)} |")
    said = "Signal-to-noise ratio of each graph's results, the worst of all inputs that were tried."
    return "\n".join(["## Graphs", "", said, "", *head, *rows])


def _parity(graph: GraphRecord) -> str:
    if graph.parity_db is None:
        return "not measured"
    parity = "equal" if graph.parity_db >= EQUAL_DB else f"{graph.parity_db:.1f} dB"
    return parity + (f", {graph.parity_cases} {'input' if graph.parity_cases == 1 else 'inputs'}" if graph.parity_cases else "")


def _weights(manifest: Manifest) -> str:
    calibrated = manifest.calibration_prompts
    codes = f"codes calibrated on {calibrated} prompts" if calibrated else "codes made without data"
    how = "" if manifest.precision != "mixed" else f", {codes}"
    rules = [f"| {escaped(rule.component)} | {escaped(rule.weights)} | {escaped(rule.scheme)} |" for rule in manifest.profile]
    left = len(rules) - MOST_RULES
    rest = ["", f"And {left} more in `manifest.json`."] if left > 0 else []
    kept = (
        ["", f"{len(manifest.kept)} weights keep their floating-point form; `manifest.json` says why."] if manifest.kept else []
    )
    said = f"Stored as {manifest.precision}{how}; the last rule that matches counts."
    head = ["| component | weights | scheme |", "|---|---|---|"]
    return "\n".join(["## Weights", "", said, "", *head, *rules[:MOST_RULES], *rest, *kept])


def _notes(manifest: Manifest) -> str:
    return "\n".join(["## Notes", "", *(f"- {escaped(note)}" for note in manifest.notes)]) if manifest.notes else ""


def _licences(manifest: Manifest, licence: Licence) -> str:
    names = [escaped(name) for name in manifest.student.licences]
    if names:
        texts = f"The student's texts, which hold for the bundle too: {', '.join(names)}."
    else:
        texts = "No licence text was found in the student. Whoever publishes the bundle must say what holds."
    recognised = f" Recognised as {escaped(licence.id)}." if names and licence.id != OTHER else ""
    return f"## Licence\n\n{texts}{recognised}"


def default_place(bundle: Bundle) -> Path:
    """In the bundle where it has no page of its own; else beside it."""
    if any(record.path == PAGE for record in bundle.manifest.files):
        folder = bundle.folder.absolute()
        return folder.with_name(f"{folder.name}.card.md")
    return bundle.folder / PAGE
