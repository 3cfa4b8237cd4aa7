from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from typer.testing import CliRunner

from deploy.bundle.inspect import inspect_student, render
from deploy.cli.main import app
from deploy.errors import InputError

T5 = "text_encoder_3/model.safetensors"


def names(content: dict[str, list[dict[str, str]]]) -> set[str]:
    return {component["name"] for component in content["components"]}


def test_an_absent_t5_is_a_note(tiny_folder: Path) -> None:
    (tiny_folder / T5).unlink()
    content = inspect_student(tiny_folder)
    assert "text_encoder_3" not in names(content)
    assert "note: text_encoder_3 (T5) is listed and its weights are not there" in render(content)


def test_a_t5_that_cannot_be_used_is_told(tiny_folder: Path) -> None:
    tensors = {name: torch.from_numpy(value).to(torch.int16) for name, value in load_file(tiny_folder / T5).items()}
    save_torch(tensors, tiny_folder / T5)
    (note,) = inspect_student(tiny_folder)["notes"]
    assert note.startswith("text_encoder_3 (T5) is there and cannot be used; builds without it (--drop-t5) can be made: ")
    assert "I16" in note


def test_damage_elsewhere_is_refused_with_all_complaints(tiny_folder: Path) -> None:
    for component in ("text_encoder_3", "text_encoder"):
        (tiny_folder / component / "config.json").write_text("{")
    with pytest.raises(InputError) as caught:
        inspect_student(tiny_folder)
    assert len(caught.value.complaints) == 2


def test_a_lora_is_told_and_not_hidden(tiny_folder: Path) -> None:
    save_file({"x.lora_A.weight": np.ones((2, 2), np.float32)}, tiny_folder / "pytorch_lora_weights.safetensors")
    left_out, refused = inspect_student(tiny_folder)["notes"]
    assert left_out.startswith("LoRA left out: pytorch_lora_weights.safetensors")
    assert "--ignore-lora" in refused
    assert inspect_student(tiny_folder, ignore_lora=True)["notes"] == [left_out]


def test_guidance_that_a_student_asks_for_is_told(tiny_folder: Path) -> None:
    (tiny_folder / "student.json").write_text(json.dumps({"guidance_scale": 1.5, "skip_guidance_layers": [1]}))
    content = inspect_student(tiny_folder)
    assert content["notes"] == []
    assert "guidance_scale 1.5, skip_guidance_layers (1,)" in render(content)


def test_the_command_line_prints_notes(tiny_folder: Path) -> None:
    (tiny_folder / "student.json").unlink()
    result = CliRunner().invoke(app, ["inspect", str(tiny_folder)])
    assert result.exit_code == 0
    assert "note: guidance is off" in result.stdout
