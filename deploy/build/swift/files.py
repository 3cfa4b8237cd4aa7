"""What a bundle of the layout ``swift`` holds beside its programs: the client's tokenizer files, a script and a README."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from string import Template

from deploy.build.layout_files import tokenizer_config, tokenizer_json
from deploy.build.plan import Plan
from deploy.build.swift.t5 import client_t5_json
from exporters.choices import ComputeUnits, System
from exporters.layouts.spec import GraphOptions
from exporters.layouts.swift_client import CLIENT, client_sizes
from exporters.layouts.swift_schedule import TRAIN_STEPS
from exporters.student.hub import called
from exporters.student.student import Student
from quantization.errors import printable
from quantization.files import write_text

SYSTEMS: dict[System, str] = {"iOS17": "iOS 17 / macOS 14", "iOS18": "iOS 18 / macOS 15"}
UNITS: dict[ComputeUnits, str] = {"cpu-and-ne": ".cpuAndNeuralEngine", "cpu-and-gpu": ".cpuAndGPU"}
NOTES: dict[ComputeUnits, str] = {
    "cpu-and-gpu": "The programs are made for the GPU. The Neural Engine's compiler fails on a transformer of SD3's size in one "
    "program, and the client has no other form of it.",
    "cpu-and-ne": "The programs are made for the Neural Engine. Its compiler fails on a transformer of SD3's size in one "
    "program (24 blocks), as others found: a smaller student may fit.",
}
UNGUIDED = """\
**Guidance has no effect**: it is distilled into the student. The transformer computes the prompt's half of the client's batch of
two and returns it twice, so a step costs half of what it would, and no scale changes the picture. Negative prompts have no effect
either."""
GUIDED = """\
**This student is guided**: the transformer computes both halves of the client's batch of two, and the client mixes them by
`guidanceScale`. Other scales and other negative prompts work as well."""
ONE_STEP = "The client has no schedule of one step: the second leaves the latents as they are."


def write_swift_files(plan: Plan, folder: Path) -> list[str]:
    """Write them.

    Args:
        plan: what is built.
        folder: the bundle's.

    Returns:
        Their paths in the bundle.
    """
    by_input = {name: tokenizer for name, _, tokenizer in plan.tokenizers}
    vocabulary = sorted(by_input["input_ids"].get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer_json(by_input["input_ids"]))["model"]["merges"]
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    own = resources.files("deploy.build.swift")
    files = {
        "vocab.json": json.dumps(dict(vocabulary), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *lines, ""]),
        "compile.sh": own.joinpath("compile.sh").read_text("utf-8"),
        "README.md": _readme(own.joinpath("README.md").read_text("utf-8"), plan),
    }
    if (t5 := by_input.get("input_ids_3")) is not None:
        files["tokenizer.json"] = client_t5_json(t5)
        files["tokenizer_config.json"] = json.dumps(tokenizer_config("input_ids_3", t5, plan.options), indent=2) + "\n"
    for path, text in files.items():
        write_text(folder / path, text)
    return sorted(files)


def _readme(template: str, plan: Plan) -> str:
    student, options, sampling, client = plan.student, plan.options, plan.sampling, plan.options.client
    assert client is not None  # the layout's
    assert plan.compute_units is not None
    vae, guidance = student.configs["vae"], sampling.guidance
    negative = json.dumps(printable(guidance.negative_prompt), ensure_ascii=False)
    return Template(template).substitute(
        student=printable(called(student.path)),
        system=SYSTEMS[plan.system],
        pixels=f"{options.width} x {options.height} px",
        t5_files=", `tokenizer.json` and `tokenizer_config.json`" if options.keep_t5 else "",
        units=UNITS[plan.compute_units],
        client_steps=client.steps,
        shift=f"{client.shift:g}",
        guidance_scale=f"{guidance.guidance_scale if guidance.on else 1:g}",
        negative_prompt=f"\npicture.negativePrompt = {negative}" if guidance.on and guidance.negative_prompt else "",
        guidance_note=GUIDED if guidance.on else UNGUIDED,
        scaling_factor=f"{vae['scaling_factor']:.9g}",
        shift_factor=f"{vae['shift_factor'] or 0.0:.9g}",
        student_sigmas=", ".join(f"{sigma:.4f}" for sigma in sampling.sigmas[:-1]),
        client_sigmas=", ".join(f"{timestep / TRAIN_STEPS:.4f}" for timestep in client.timesteps),
        scales=", ".join(f"{scale:.4g}" for scale in client.scales),
        one_step=f" {ONE_STEP}" if client.steps > len(sampling.timesteps) else "",
        compute_note=NOTES[plan.compute_units],
        client_sizes=_sizes(student, options),
        latent_channels=student.configs["transformer"]["in_channels"],
    )


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
