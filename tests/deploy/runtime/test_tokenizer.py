from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from deploy.build.layout_files import tokenizer_json
from deploy.bundle.folder import Bundle
from deploy.errors import BundleError
from deploy.runtime.pipeline import Pipeline
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT
from exporters.student.tokenizers import load_tokenizer as load_transformers_tokenizer

PROMPTS = [
    "",
    "a red circle",
    "A RED  Circle,\tleft\nof a blue square!!",
    "ein gr\u00fcner Kreis \u2014 na\u00efve caf\u00e9",
    "\u8d64\u3044\u5186 \U0001f534\U0001f7e6",
    "<|endoftext|> a <|startoftext|> b",
    "don't can't 1234567890 a_b-c",
    "word " * 50,
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=[repr(p)[:20] for p in PROMPTS])
def test_same_ids_as_transformers(prompt: str, builtin_bundle: Bundle) -> None:
    student, ids = open_student(), Pipeline(builtin_bundle).tokenize(prompt)
    for component, name in (("text_encoder", "input_ids"), ("text_encoder_2", "input_ids_2")):
        expected = load_transformers_tokenizer(student, component)(prompt, padding="max_length", max_length=16, truncation=True)[
            "input_ids"
        ]
        assert np.array_equal(ids[name], [expected])


def test_hub_layout_gives_the_same_ids(tmp_path: Path) -> None:
    """Real checkpoints hold vocab.json and merges.txt, and no tokenizer.json."""
    folder = Path(shutil.copytree(BUILTIN_STUDENT, tmp_path / "student"))
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        file = folder / name / "tokenizer.json"
        model = json.loads(file.read_text("utf-8"))["model"]
        (folder / name / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / name / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
        config = {"model_max_length": 16, "tokenizer_class": "CLIPTokenizer", "pad_token": pad}
        config |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
        file.unlink()
    hub, builtin = open_student(folder), open_student()
    for component in ("text_encoder", "text_encoder_2"):
        ours, theirs = load_transformers_tokenizer(hub, component), load_transformers_tokenizer(builtin, component)
        runtime = Tokenizer.from_str(tokenizer_json(ours))
        runtime.enable_truncation(16)
        runtime.enable_padding(length=16, pad_id=ours.pad_token_id)
        for prompt in PROMPTS:
            expected = theirs(prompt, padding="max_length", max_length=16, truncation=True)["input_ids"]
            assert runtime.encode(prompt).ids == expected, prompt


def test_cut_tokens_are_counted(builtin_bundle: Bundle) -> None:
    pipeline = Pipeline(builtin_bundle)
    assert pipeline.tokens_cut("a red circle") == {}
    cut = pipeline.tokens_cut("circle " * 20)
    assert cut == {"input_ids": 6, "input_ids_2": 6}  # 14 of 20 fit between start and end


def test_a_tokenizer_that_panics_is_a_complaint(damaged_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An expression that backtracks for ever is given up by the library with a panic, which is no Exception in Python."""
    file = damaged_bundle / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    file.write_text(json.dumps(content), "utf-8")
    manifest = json.loads((damaged_bundle / "manifest.json").read_text("utf-8"))
    record = next(record for record in manifest["files"] if record["path"] == "tokenizer/tokenizer.json")
    record["size_bytes"] = file.stat().st_size
    (damaged_bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError, match="A tokenizer cannot encode the prompt"):
        Pipeline(damaged_bundle).tokenize("a" * 40 + " red circle")
    capfd.readouterr()  # Rust reports its panic itself
