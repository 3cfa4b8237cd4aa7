"""Whether Apple's Swift client tokenizes as the student does."""

from __future__ import annotations

import json

from deploy.build.layout_files import tokenizer_json
from deploy.build.swift.t5 import t5_complaints
from deploy.errors import Complaint, InputError
from exporters.student.tokenizers import Tokenizers

PADS = {"input_ids": "<|endoftext|>", "input_ids_2": "!"}  # what the client pads each CLIP encoder's ids with


def check_client_tokenizers(tokenizers: Tokenizers) -> None:
    """Refuse tokenizers that the client would not tokenize alike with.

    Args:
        tokenizers: of each kept encoder.

    Raises:
        InputError: two CLIP vocabularies, where the client has one for both; other special tokens than its own; or a T5 tokenizer
            that its tokenizer library cannot read, or reads otherwise.
    """
    clips = {name: tokenizer for name, _, tokenizer in tokenizers if name in PADS}
    models = [json.loads(tokenizer_json(tokenizer))["model"] for tokenizer in clips.values()]
    complaints = []
    if any(model != models[0] for model in models[1:]):
        complaints.append(Complaint("tokenizer_2", "differs from tokenizer", "one vocabulary and one list of merges for both"))
    for name, tokenizer in clips.items():
        vocabulary = tokenizer.get_vocab()
        specials = {
            PADS[name]: tokenizer.pad_token_id,
            "<|startoftext|>": tokenizer.bos_token_id,
            "<|endoftext|>": tokenizer.eos_token_id,
        }
        complaints += [
            Complaint(name, f"the Swift client takes {token!r}", str(index), str(vocabulary.get(token)))
            for token, index in specials.items()
            if vocabulary.get(token) != index
        ]
    complaints += [
        complaint for name, _, tokenizer in tokenizers if name == "input_ids_3" for complaint in t5_complaints(tokenizer)
    ]
    if complaints:
        remedy = "build the layout native, and tokenize as its tokenizer.json says"
        raise InputError("The Swift client cannot tokenize for this student.", complaints, remedy)
