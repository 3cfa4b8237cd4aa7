"""Prompts as token ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from exporters.layouts.spec import GraphOptions
from exporters.student.student import Student
from exporters.student.tokenizers import load_tokenizer


def token_ids(student: Student, component: str, options: GraphOptions, prompt: str) -> np.ndarray:
    """A prompt's ids for one text encoder, ``[1, tokens]``; its tokenizer is opened for them."""
    return encoded_ids(load_tokenizer(student, component), component, options, prompt)


def encoded_ids(tokenizer: Any, component: str, options: GraphOptions, prompt: str) -> np.ndarray:
    """A prompt's ids by the open tokenizer of a text encoder, ``[1, tokens]``."""
    length = options.max_sequence_length if component == "text_encoder_3" else options.clip_tokens
    encoded = tokenizer(prompt, padding="max_length", max_length=length, truncation=True)
    return np.asarray([encoded["input_ids"]], np.int64)
