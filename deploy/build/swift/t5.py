"""T5's tokenizer as Apple's Swift client reads it: swift-transformers 0.1.8, which the client pins.

That library knows the files of tokenizers before 0.20. What newer ones write otherwise is written both ways; what it has no form
for is found before a bundle is built, since the client would stop at it, or silently see another text.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from deploy.build.layout_files import tokenizer_json
from deploy.errors import Complaint

WHERE = "tokenizer_3"
SPLITTERS = ["WhitespaceSplit", "Metaspace"]
PAD_PIECE = " "  # what the library calls the begin token of any such vocabulary, and the client pads with
PAD_ID = 0  # where the vocabulary has no such piece


def client_t5_json(tokenizer: Any) -> str:
    """The client's ``tokenizer.json``: each ``Metaspace`` says in the old words, too, whether words begin with its mark.

    Without ``add_prefix_space`` the library gives no word its mark, whatever ``prepend_scheme`` says, and every id is another.

    Args:
        tokenizer: transformers' T5 tokenizer.
    """
    content = json.loads(tokenizer_json(tokenizer))
    for part in ("pre_tokenizer", "decoder"):
        _say_prefix(content[part])
    return json.dumps(content, ensure_ascii=False)


def _say_prefix(part: Any) -> None:
    """In place, in sequences of parts too."""
    if isinstance(part, list):
        for one in part:
            _say_prefix(one)
    elif isinstance(part, dict):
        if part.get("type") == "Metaspace":
            part["add_prefix_space"] = part.get("prepend_scheme", "always") != "never"
        for inner in ("pretokenizers", "decoders"):
            _say_prefix(part.get(inner))


def t5_complaints(tokenizer: Any) -> list[Complaint]:
    """Where the client's ids would not be the tokenizer's.

    Args:
        tokenizer: transformers' T5 tokenizer.
    """
    content = json.loads(tokenizer_json(tokenizer))
    model = content["model"]
    if model["type"] != "Unigram":
        return [Complaint(WHERE, "the Swift client reads T5's kind of model only", "Unigram", model["type"])]
    vocabulary = [piece for piece, _ in model["vocab"]]
    ids = {piece: i for i, piece in reversed(list(enumerate(vocabulary)))}
    complaints = []
    for told, got, expected in (
        ("the Swift client pads with", tokenizer.pad_token_id, ids.get(PAD_PIECE, PAD_ID)),
        ("the Swift client ends a prompt with", tokenizer.eos_token_id, ids.get(str(tokenizer.eos_token), 1)),
    ):
        if got != expected:
            complaints.append(Complaint(WHERE, told, f"id {expected}", f"id {got}"))
    if (bare := tokenizer("")["input_ids"]) != [tokenizer.eos_token_id]:
        complaints.append(Complaint(WHERE, "adds other tokens than the Swift client", "the end token alone", f"ids {bare}"))
    if model.get("unk_id") is None:
        complaints.append(Complaint(WHERE, "the Swift client needs an unknown token", "model.unk_id"))
    if model.get("byte_fallback"):
        complaints.append(Complaint(WHERE, "the Swift client has no byte_fallback", "false", "true"))
    if len({unicodedata.normalize("NFC", piece) for piece in vocabulary}) != len(vocabulary):
        complaints.append(Complaint(WHERE, "has pieces that are one string in Swift", "pieces that are not canonically equal"))
    return complaints + _part_complaints(content)


def _part_complaints(content: dict[str, Any]) -> list[Complaint]:
    """Normalizer and pre-tokenizer: the library stops at kinds that it does not know, and T5's ids need these."""
    normalizer, splitter = content["normalizer"], content["pre_tokenizer"] or {}
    complaints = []
    if normalizer is not None and normalizer["type"] != "Precompiled":
        expected = "Precompiled, or none"
        complaints.append(Complaint(f"{WHERE}: normalizer", "the Swift client has T5's own", expected, normalizer["type"]))
    parts = splitter.get("pretokenizers", [splitter])
    kinds = [part.get("type") for part in parts]
    if kinds != SPLITTERS:
        complaints.append(
            Complaint(
                f"{WHERE}: pre_tokenizer", "the Swift client has T5's own", " and ".join(SPLITTERS), ", ".join(map(str, kinds))
            )
        )
    elif (scheme := parts[1].get("prepend_scheme", "always")) == "first":
        complaints.append(Complaint(f"{WHERE}: prepend_scheme", "the Swift client marks each word", "always or never", scheme))
    return complaints
