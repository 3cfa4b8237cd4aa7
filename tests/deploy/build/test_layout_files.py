from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.build.layout_files import write_layout_files
from exporters.layouts.spec import GraphOptions
from exporters.student.open import open_student
from exporters.student.tokenizers import open_tokenizers
from exporters.student.weights.templates import reference_module
from tests.exporters.student.test_student import edit_json

OPTIONS = GraphOptions("optimum", 64, 64, (1000.0, 500.0), clip_tokens=20, keep_t5=True, max_sequence_length=9)
FOLDERS = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
    "transformer": "transformer",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}


def as_its_class_writes_it(component: str, file: Path) -> dict[str, Any]:
    config = reference_module(component, json.loads(file.read_text())).config
    return json.loads(json.dumps(dict(config) if isinstance(config, dict) else config.to_dict(), default=str))


def test_optimum_is_given_configurations_as_their_classes_write_them(tiny_folder: Path, tmp_path: Path) -> None:
    """Every default filled in, and what the class renames or sets itself: its loaders ask for more than exports read."""
    edit_json(tiny_folder / "text_encoder_3/config.json", torch_dtype="float16", tie_word_embeddings=False, use_cache=True)
    edit_json(tiny_folder / "transformer/config.json", _name_or_path="somewhere/else", _diffusers_version="0.29.0")
    vae = tiny_folder / "vae/config.json"
    vae.write_text(json.dumps({key: value for key, value in json.loads(vae.read_text()).items() if key != "act_fn"}))
    student = open_student(tiny_folder)
    write_layout_files(student, OPTIONS, open_tokenizers(student, keep_t5=True), tmp_path)
    for folder, component in FOLDERS.items():
        expected = as_its_class_writes_it(component, tiny_folder / component / "config.json")
        if component == "text_encoder_3":
            expected["num_hidden_layers"] = expected["num_layers"]
            assert expected["dtype"] == "float16"
            assert "torch_dtype" not in expected
        assert json.loads((tmp_path / folder / "config.json").read_text()) == expected
    assert "act_fn" in json.loads((tmp_path / "vae_decoder/config.json").read_text())["_use_default_values"]
