"""What a bundle of the layout ``swift`` holds beside its programs: the client's tokenizer files, a script and a README."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from deploy.build.format import ComputeUnits, Target
from deploy.build.layout_files import tokenizer_config
from deploy.build.swift.t5 import client_t5_json, t5_complaints
from deploy.bundle.manifest import ClientScheduleRecord
from deploy.errors import Complaint, InputError
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import GraphOptions
from exporters.layouts.swift_client import CLIENT, client_sizes
from exporters.reference.swift_schedule import client_sigmas
from exporters.student.student import Student
from quantization.errors import printable
from quantization.files import write_text

Tokenizers = tuple[tuple[str, str, Any], ...]
SYSTEMS = {"iOS17": "iOS 17 / macOS 14", "iOS18": "iOS 18 / macOS 15"}
UNITS: dict[ComputeUnits, str] = {"cpu-and-ne": ".cpuAndNeuralEngine", "cpu-and-gpu": ".cpuAndGPU"}
NOTES: dict[ComputeUnits, str] = {
    "cpu-and-gpu": "The programs are made for the GPU. The Neural Engine's compiler fails on a transformer of SD3's size in one "
    "program, and the client has no other form of it.",
    "cpu-and-ne": "The programs are made for the Neural Engine. Its compiler fails on a transformer of SD3's size in one "
    "program (24 blocks), as others found: a smaller student may fit.",
}
SAME_STEPS = "The client's scheduler has this student's schedule, or comes nearest to it, with as many steps."
MORE_STEPS = "The client's scheduler ends near zero and not at it, so that one of its steps is lost there."
PADS = {"input_ids": "<|endoftext|>", "input_ids_2": "!"}  # what the client pads each CLIP encoder's ids with


def check_client_tokenizers(tokenizers: Tokenizers) -> None:
    """Refuse tokenizers that the client would not tokenize alike with.

    Args:
        tokenizers: ``(graph input, folder, transformers tokenizer)`` of each kept encoder.

    Raises:
        InputError: two CLIP vocabularies, where the client has one for both; other special tokens than its own; or a T5 tokenizer
            that its tokenizer library cannot read, or reads otherwise.
    """
    clips = {name: tokenizer for name, _, tokenizer in tokenizers if name in PADS}
    models = [_content(tokenizer)["model"] for tokenizer in clips.values()]
    complaints = []
    if any(model != models[0] for model in models[1:]):
        complaints.append(Complaint("tokenizer_2", "differs from tokenizer", "one vocabulary and one list of merges for both"))
    for name, tokenizer in clips.items():
        vocabulary = tokenizer.get_vocab()
        specials = {
            PADS[name]: tokenizer.pad_token_id,
            "<|startoftext|>": tokenizer.bos_token_id,
            "<|endoftext|>": tokenizer.eos_token_id,
        }
        complaints += [
            Complaint(name, f"the Swift client takes {token!r}", str(index), str(vocabulary.get(token)))
            for token, index in specials.items()
            if vocabulary.get(token) != index
        ]
    complaints += [found for name, _, tokenizer in tokenizers if name == "input_ids_3" for found in t5_complaints(tokenizer)]
    if complaints:
        remedy = "build the layout native, and tokenize as its tokenizer.json says"
        raise InputError("The Swift client cannot tokenize for this student.", complaints, remedy)


def write_swift_files(
    student: Student,
    options: GraphOptions,
    sampling: Sampling,
    schedule: ClientScheduleRecord,
    tokenizers: Tokenizers,
    target: Target,
    units: ComputeUnits,
    folder: Path,
) -> list[str]:
    """Write them into ``folder``.

    Args:
        student: the student.
        options: the bundle's shape.
        sampling: the student's schedule.
        schedule: the client's that comes nearest.
        tokenizers: ``(graph input, folder, transformers tokenizer)`` of each kept encoder.
        target: the oldest system.
        units: what the programs are made for.
        folder: the bundle's folder.

    Returns:
        Their paths in the bundle.
    """
    by_input = {name: tokenizer for name, _, tokenizer in tokenizers}
    vocabulary = sorted(by_input["input_ids"].get_vocab().items(), key=lambda item: item[1])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in _content(by_input["input_ids"])["model"]["merges"]]
    own = resources.files("deploy.build.swift")
    files = {
        "vocab.json": json.dumps(dict(vocabulary), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "compile.sh": own.joinpath("compile.sh").read_text("utf-8"),
        "README.md": _readme(own.joinpath("README.md").read_text("utf-8"), student, options, sampling, schedule, target, units),
    }
    if (t5 := by_input.get("input_ids_3")) is not None:
        files["tokenizer.json"] = client_t5_json(t5)
        files["tokenizer_config.json"] = json.dumps(tokenizer_config("input_ids_3", t5, options), indent=2) + "\n"
    for path, text in files.items():
        write_text(folder / path, text)
    return sorted(files)


def _content(tokenizer: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return content


def _readme(
    template: str,
    student: Student,
    options: GraphOptions,
    sampling: Sampling,
    schedule: ClientScheduleRecord,
    target: Target,
    units: ComputeUnits,
) -> str:
    vae, steps = student.configs["vae"], len(sampling.timesteps)
    return Template(template).substitute(
        student=printable(student.path.resolve().name),
        system=SYSTEMS[target],
        pixels=f"{options.width} x {options.height} px",
        t5_files=", `tokenizer.json` and `tokenizer_config.json`" if options.keep_t5 else "",
        units=UNITS[units],
        steps=steps,
        client_steps=schedule.steps,
        shift=f"{schedule.shift:g}",
        scaling_factor=f"{vae['scaling_factor']:.9g}",
        shift_factor=f"{vae['shift_factor'] or 0.0:.9g}",
        student_sigmas=", ".join(f"{sigma:.4f}" for sigma in sampling.sigmas[:-1]),
        client_sigmas=", ".join(f"{sigma:.4f}" for sigma in client_sigmas(schedule.steps, schedule.shift)),
        schedule_note=MORE_STEPS if schedule.steps > steps else SAME_STEPS,
        nearness=_nearness(schedule),
        compute_note=NOTES[units],
        client_sizes=_sizes(student, options),
        latent_channels=student.configs["transformer"]["in_channels"],
    )


def _nearness(schedule: ClientScheduleRecord) -> str:
    if schedule.psnr_db is None:
        return "How near its pictures come to the student's was not measured."
    return f"Drawn by both in fp32, pictures agree to {schedule.psnr_db:.1f} dB PSNR."


def _sizes(student: Student, options: GraphOptions) -> str:
    """Where the student is not as the client's code has it."""
    own = client_sizes(student, options.clip_tokens)
    other = [f"| {name} | {size} | {own[name]} |" for name, size in CLIENT.items() if own[name] != size]
    if not other:
        return "The sizes that its code holds (77 tokens; 768, 1280, 2048 and 4096 channels) are this student's."
    rows = ["| | the client | this student |", "|---|---|---|", *other]
    return "\n".join(
        ["**The client must be changed for this student.** Its code (`encodePrompt`, `generateConditioning`) holds:", "", *rows]
    )
