from __future__ import annotations

import numpy as np
import pytest

from deploy.bundle import Bundle
from deploy.runtime import Pipeline
from exporters.reference import load_tokenizer
from exporters.student import open_student

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
        expected = load_tokenizer(student, component)(prompt, padding="max_length", max_length=16, truncation=True)["input_ids"]
        assert np.array_equal(ids[name], [expected])


def test_cut_tokens_are_counted(builtin_bundle: Bundle) -> None:
    pipeline = Pipeline(builtin_bundle)
    assert pipeline.tokens_cut("a red circle") == {}
    cut = pipeline.tokens_cut("circle " * 20)
    assert cut == {"input_ids": 6, "input_ids_2": 6}  # 14 of 20 fit between start and end
