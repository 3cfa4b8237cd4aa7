from __future__ import annotations

import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from deploy.build import BuildRequest
from deploy.build.onnx_format import OnnxFormat
from deploy.build.plan import settle
from deploy.bundle.folder import Bundle
from deploy.cli.main import app
from tests.helpers.command import flash_deploy


def test_version() -> None:
    done = flash_deploy("--version")
    assert (done.returncode, done.stdout) == (0, "flash-deploy 0.2.0\n")


def test_generate_writes_pictures(builtin_bundle: Bundle, tmp_path: Path) -> None:
    done = flash_deploy(
        "generate",
        builtin_bundle.folder,
        "a small red circle on a black background",
        "--num-images",
        2,
        "-o",
        tmp_path / "p.png",
    )
    assert (done.returncode, done.stdout.split()) == (0, [str(tmp_path / f"p-{i}.png") for i in (0, 1)])
    with Image.open(tmp_path / "p-0.png") as picture:
        assert picture.size == (64, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p-0.png", "p-1.png"]


def test_generate_takes_latents_and_writes_arrays(builtin_bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.random.default_rng(0).standard_normal((2, 16, 8, 8), np.float32))
    arguments = [
        "generate",
        builtin_bundle.folder,
        "a red circle",
        "--latents",
        tmp_path / "l.npy",
        "-o",
        tmp_path / "p.npy",
    ]
    assert flash_deploy(*arguments).returncode == 0
    pictures = np.load(tmp_path / "p.npy")
    assert (pictures.shape, pictures.dtype) == ((2, 64, 64, 3), np.float32)
    assert 0 <= pictures.min() < pictures.max() <= 1


def test_long_prompts_are_noted(builtin_bundle: Bundle, tmp_path: Path) -> None:
    done = flash_deploy("generate", builtin_bundle.folder, "circle " * 20, "-o", tmp_path / "p.png")
    assert done.returncode == 0
    assert "its last 6 tokens are not seen" in done.stderr


def test_verify(builtin_bundle: Bundle, damaged_bundle: Path) -> None:
    done = flash_deploy("verify", builtin_bundle.folder, "--student", "builtin")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("good\n")
    assert done.stdout.count(" dB") == 6
    file = damaged_bundle / "denoiser.onnx.data"
    file.write_bytes(file.read_bytes()[:-1] + b"\x77")
    done = flash_deploy("verify", damaged_bundle)
    assert done.returncode == 1
    assert "denoiser.onnx.data: content was changed" in done.stderr


def test_verify_against_another_student(builtin_bundle: Bundle, tiny_folder: Path) -> None:
    done = flash_deploy("verify", builtin_bundle.folder, "--student", tiny_folder)
    assert done.returncode == 1
    assert "the bundle was made of another student" in done.stderr


def test_inspect(builtin_bundle: Bundle) -> None:
    student = json.loads(flash_deploy("inspect", "--json").stdout)
    assert student["kind"] == "student"
    assert {c["name"]: c["parameters"] for c in student["components"]}["transformer"] == 2_569_360
    bundle = json.loads(flash_deploy("inspect", builtin_bundle.folder, "--json").stdout)
    assert bundle["total_bytes"] == sum(f["size_bytes"] for f in bundle["files"])
    text = flash_deploy("inspect", builtin_bundle.folder).stdout
    assert "sigmas 1, 0.9, 0.75, 0.5, 0" in text
    assert "denoiser" in text


def test_every_command_that_takes_a_student_takes_its_options() -> None:
    root: Any = typer.main.get_command(app)
    commands = root.commands
    options = {name: {option for p in command.params for option in (p.name, *p.opts)} for name, command in commands.items()}
    of_students = {name for name, accepted in options.items() if "--variant" in accepted}
    assert of_students == {"build", "calibrate", "tune", "verify", "bench", "inspect"}
    assert of_students == {name for name, accepted in options.items() if "--ignore-lora" in accepted}
    assert of_students | {"distill"} == {name for name, accepted in options.items() if "--lora" in accepted}
    assert of_students >= {name for name, accepted in options.items() if "student" in accepted}


BAD_CALLS = {
    "no bundle": (["generate", "nowhere", "x"], "nowhere is not a bundle"),
    "unknown file type": (["generate", "{bundle}", "x", "-o", "x.gif"], "unknown kind of file"),
    "no folder": (["generate", "{bundle}", "x", "-o", "no/where.png"], "no such folder"),
    "pickled latents": (["generate", "{bundle}", "x", "--latents", "pickled.npy", "-o", "x.png"], "a plain .npy array"),
    "empty latents": (["generate", "{bundle}", "x", "--latents", "empty.npy", "-o", "x.png"], "a plain .npy array"),
    "output is a folder": (["generate", "{bundle}", "x", "-o", "folder.png"], "is a folder"),
    "latents that are one number": (["generate", "{bundle}", "x", "--latents", "one.npy", "-o", "x.png"], "a single number"),
    "endless name": (["generate", "{bundle}", "x", "-o", "n" * 300 + ".png"], "File name too long"),
    "endless bundle": (["generate", "n" * 300, "x", "-o", "x.png"], "File name too long"),
    "endless student": (["inspect", "n" * 300], "File name too long"),
    "endless output": (["build", "-o", "n" * 300], "File name too long"),
    "wrong latents": (
        ["generate", "{bundle}", "x", "--latents", "wrong.npy", "-o", "x.png"],
        "expected [images, 16, 8, 8], got [3]",
    ),
    "latents beyond fp32": (["generate", "{bundle}", "x", "--latents", "huge.npy", "-o", "x.png"], "latents"),
    "two numbers of pictures": (
        ["generate", "{bundle}", "x", "--latents", "two.npy", "--num-images", "3", "-o", "x.png"],
        "--num-images: disagrees with --latents (expected 2, got 3)",
    ),
    "prompt that is no text": (["generate", "{bundle}", os.fsdecode(b"a \xff"), "-o", "x.png"], "is not UTF-8"),
    "no threads": (["generate", "{bundle}", "x", "--threads", "0", "-o", "x.png"], "--threads"),
    "provider of another runtime": (
        ["generate", "{bundle}", "x", "--runtime", "openvino", "--provider", "cuda", "-o", "x.png"],
        "--provider",
    ),
    "wrong sigmas": (["build", "-o", "b", "--sigmas", "1,zwei"], "--sigmas '1,zwei' is not a list of numbers"),
    "missing option": (["build"], "Missing option '-o'"),
    "wrong precision": (["build", "-o", "b", "--precision", "int8"], "'int8' is not one of 'fp32', 'fp16'"),
    "neither": (["inspect", "."], "is not a student"),
    "variant of nothing": (["verify", "{bundle}", "--variant", "fp16"], "--variant: no student is given"),
    "LoRA of nothing": (["verify", "{bundle}", "--ignore-lora"], "--ignore-lora: no student is given"),
    "LoRA merged into nothing": (["verify", "{bundle}", "--lora", "x"], "--lora: no student is given"),
    "LoRA merged into a bundle": (["inspect", "{bundle}", "--lora", "x"], "--lora: a bundle's LoRAs were merged when it was"),
    "LoRA of no size": (
        ["inspect", "--lora", "x.safetensors:nan"],
        "--lora: the scale is wrong (expected a finite number, got nan)",
    ),
    "no LoRA": (["build", "--lora", "nowhere.safetensors", "-o", "b"], "The LoRA nowhere.safetensors does not exist."),
    "LoRA without teacher": (["distill", "shapes-cpu", "--lora", "x", "-o", "r"], "--lora: no teacher is given"),
    "benchmark of a variant of nothing": (["bench", "{bundle}", "--variant", "fp16"], "--variant: pictures are judged"),
    "hub id": (["build", "org/sd3.5-turbo", "-o", "b"], "org/sd3.5-turbo is not here; it looks like a model hub's id"),
    "more dual layers than layers": (["make-student", "--dual-layers", "4", "-o", "s"], "dual_layers: more than there are"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_exit_with_2(arguments: list[str], message: str, builtin_bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    np.save(tmp_path / "wrong.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "huge.npy", np.full((1, 16, 8, 8), 1e300))
    np.save(tmp_path / "one.npy", np.float32(1))
    np.save(tmp_path / "two.npy", np.zeros((2, 16, 8, 8), np.float32))
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder.png").mkdir()
    done = flash_deploy(*(a.format(bundle=builtin_bundle.folder) for a in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "empty.npy",
        "folder.png",
        "huge.npy",
        "one.npy",
        "pickled.npy",
        "two.npy",
        "wrong.npy",
    ]


def in_process(*arguments: object) -> str:
    """What a command prints in a terminal of 80 columns."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_of_commands_is_whole() -> None:
    lines = in_process("-h").splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert len(commands) == 15
    assert not [line for line in commands if "..." in line]
    assert in_process("-h") == in_process("--help")


def test_short_version() -> None:
    assert in_process("-V") == in_process("--version") == f"flash-deploy {metadata.version('flash-deploy')}\n"


def test_tiers_show_every_format() -> None:
    phone = in_process("tiers").split("tablet:")[0]
    assert "coreml: default profile int8, lut6" in phone
    assert "cpu-and-ne: can run fp16, int8, lut8, lut6, lut4" in phone
    assert "onnx: default profile int8, int8g128" in phone


def test_a_dry_run_traces_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run must not trace")

    monkeypatch.setattr(OnnxFormat, "draft", refuse)
    said = in_process("build", "--dry-run", "--precision", "fp32", "-o", tmp_path / "new" / "bundle")
    assert list(tmp_path.iterdir()) == []
    assert "profile: */* -> fp32" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("denoiser", "vae_decoder"))}
    denoiser = next(graph for graph in settle(BuildRequest(output=tmp_path)).graphs if graph.name == "denoiser")
    assert rows["denoiser"][1] == f"{denoiser.parameters:,}"
    assert float(rows["denoiser"][2]) == pytest.approx(4 * denoiser.parameters / 1e6, rel=0.01)
    assert re.search(r"download: [\d.]+ MB estimated, the tier allows 7.00 GB", said)
    assert re.search(r"disk: [\d.]+ MB while it is built, [\d.]+ .B free in ", said)


def test_a_dry_run_refuses_what_a_build_refuses(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    done = flash_deploy("build", "--dry-run", "-o", tmp_path / "there")
    assert (done.returncode, "is there already" in done.stderr) == (2, True)
