"""Prompts to token ids, as transformers does it, with the ``tokenizers`` library alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from deploy.bundle.manifest import TokenizerRecord
from deploy.errors import BundleError, Complaint


def load_tokenizer(folder: Path, record: TokenizerRecord) -> Tokenizer:
    """A bundle's tokenizer, set to pad and cut to its fixed length.

    Raises:
        BundleError: the file is not a tokenizer.
    """
    file = folder / record.path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise BundleError("A tokenizer cannot be read.", [Complaint(str(file), str(error))], "build the bundle again") from error
    tokenizer.enable_truncation(record.max_length)
    tokenizer.enable_padding(length=record.max_length, pad_id=record.pad_token_id)
    return tokenizer


def encode(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Token ids ``[1, max_length]``, int64.

    Raises:
        BundleError: the tokenizer cannot encode it.
    """
    return np.asarray([_encoding(tokenizer, prompt).ids], np.int64)


def tokens_cut(tokenizer: Tokenizer, prompt: str) -> int:
    """How many tokens of the prompt do not fit and are left out."""
    return sum(len(piece.ids) - piece.special_tokens_mask.count(1) for piece in _encoding(tokenizer, prompt).overflowing)


def _encoding(tokenizer: Tokenizer, prompt: str) -> Encoding:
    try:
        return tokenizer.encode(prompt)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust, of an expression that gives up for example, is no Exception
        raise BundleError("A tokenizer cannot encode the prompt.", [Complaint("tokenizer.json", str(error))]) from error
