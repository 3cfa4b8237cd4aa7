"""Make what the roofline is calibrated on: students of three sizes and the built-in one, each stored in four ways.

    python -m benchmarks.studies.roofline.bundles work
    python -m benchmarks.studies.roofline.fit work/bundles/*

No two students share a graph's shape: text encoders, transformer, VAE and picture size all differ, so that a student that is
left out is new to the shares that predict it. Takes 15 GB of disk and half an hour on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.studies.command import build
from distillation.random_students import PRESETS, ClipShape, make_student
from quantization.files import write_text
from quantization.profile import Profile, Rule, profile_toml
from quantization.schemes import parse_scheme

SCHEMES = ("fp16", "w8a8", "int8g128", "int4g32")
MID = PRESETS["mid"]
STUDENTS = {
    "small": replace(
        MID,
        layers=5,
        heads=6,
        dual_layers=2,
        joint=1024,
        clip=ClipShape(256, 6, 4, 256, "quick_gelu", 49408, 77),
        clip_2=ClipShape(384, 8, 6, 384, "gelu", 49408, 77),
        vae_channels=(32, 64, 128, 128),
    ),
    "medium": replace(
        MID,
        layers=4,
        heads=16,
        dual_layers=2,
        joint=2048,
        clip=ClipShape(512, 8, 8, 512, "quick_gelu", 49408, 77),
        clip_2=ClipShape(1024, 10, 16, 1024, "gelu", 49408, 77),
        vae_channels=(64, 128, 256, 256),
    ),
    "mid": MID,
}
PIXELS = {"small": 256, "medium": 384, "mid": 512}


def profile(scheme: str) -> Profile:
    """The products of transformer and text encoders in a scheme, the rest in fp16."""
    stored = {"*": ("*", "fp16"), "transformer": ("*", scheme), "text_encoder*": ("*.encoder.*", scheme)}
    return Profile(tuple(Rule(component, weights, parse_scheme(name)) for component, (weights, name) in stored.items()))


def main() -> None:
    """Make students and bundles; what is there already stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for students, profiles and bundles")
    work = parser.parse_args().work
    (work / "bundles").mkdir(parents=True, exist_ok=True)
    for scheme in SCHEMES:
        write_text(work / f"{scheme}.toml", profile_toml(profile(scheme), "products in one scheme"))
    for name in ("builtin", *STUDENTS):
        if name in STUDENTS and not (work / name).exists():
            make_student(STUDENTS[name], work / name)
        for scheme in SCHEMES:
            _build(work, name, scheme)


def _build(work: Path, name: str, scheme: str) -> None:
    output = work / "bundles" / f"{name}_{scheme}"
    if output.exists():
        return
    print(output, flush=True)
    options: list[object] = ["-o", output, "--parity", "never"]
    options += ["--profile", work / f"{scheme}.toml"] if scheme != "fp16" else ["--precision", "fp16"]
    if name in STUDENTS:
        options += [work / name, "--height", PIXELS[name], "--width", PIXELS[name]]
    build(*options)


if __name__ == "__main__":
    main()
