"""The client's T5 tokenizer, played in Python, on the file that a bundle gives it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from deploy.build.swift.t5 import client_t5_json, t5_complaints
from exporters.choices import PROMPTS
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.tokenizers import load_tokenizer

TEXTS = (
    *PROMPTS,
    "a cat",
    "A CAT, sitting; on (the) mat!",
    "  two   spaces and\ttab\n",
    "",
    "caf\u00e9 \ufb01ne 12.5 %",
    "\u2581 mark",
)
SEPARATORS = {0x0009, 0x000A, 0x000C, 0x000D, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD}
CONTROLS = {*range(0x0001, 0x0009), 0x000B, *range(0x000E, 0x0020), 0x007F, 0x008F, 0x009F}


def client_ids(file: str, text: str, length: int) -> list[int]:
    """swift-transformers 0.1.8 (Tokenizer, Normalizer, PreTokenizer, UnigramTokenizer) and the client's TextEncoderT5."""
    content = json.loads(file)
    model = content["model"]
    pieces = pre_tokenize(content["pre_tokenizer"], [normalize(content["normalizer"], text)])
    unigram = Tokenizer(models.Unigram([tuple(entry) for entry in model["vocab"]], model["unk_id"]))
    ids = [index for piece in pieces for index in unigram.encode(piece).ids]
    vocabulary = {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    ids = [*ids[: length - 1], vocabulary["</s>"]]
    return ids + [vocabulary.get(" ", 0)] * (length - len(ids))


def normalize(part: dict[str, Any] | None, text: str) -> str:
    if part is None:
        return text
    assert part["type"] == "Precompiled"
    kept = "".join(" " if ord(c) in SEPARATORS else "" if ord(c) in CONTROLS else c for c in text)
    return unicodedata.normalize("NFKC", kept)


def pre_tokenize(part: dict[str, Any], texts: list[str]) -> list[str]:
    if part["type"] == "Sequence":
        for inner in part["pretokenizers"]:
            texts = pre_tokenize(inner, texts)
        return texts
    if part["type"] == "WhitespaceSplit":
        return [word for text in texts for word in re.findall(r"\S+", text)]
    assert part["type"] == "Metaspace"
    mark, pieces = part["replacement"], []
    for text in texts:
        marked = text.replace(" ", mark)
        if (
            part.get("add_prefix_space", False)
            and not marked.startswith(mark)
            and part.get("prepend_scheme", "always") != "never"
        ):
            marked = mark + marked
        pieces += [piece for piece in re.split(f"(?={mark})", marked) if piece]
    return pieces


@pytest.mark.parametrize("shape", ["builtin", "tiny"])
def test_the_client_finds_the_students_ids(shape: str, students: dict[str, Student]) -> None:
    tokenizer = load_tokenizer(open_student() if shape == "builtin" else students[shape], "text_encoder_3")
    assert t5_complaints(tokenizer) == []
    file = client_t5_json(tokenizer)
    for text in TEXTS:
        for length in (77, 4):
            wanted = tokenizer(text, padding="max_length", max_length=length, truncation=True)["input_ids"]
            assert client_ids(file, text, length) == wanted, text
    assert Tokenizer.from_str(file).encode("a cat").ids == tokenizer("a cat")["input_ids"]  # the newer reader takes it, too


def test_without_the_old_word_every_id_is_another() -> None:
    """The player can tell: this is what the client made of the file that tokenizers writes."""
    tokenizer = load_tokenizer(open_student(), "text_encoder_3")
    wanted = tokenizer("a cat", padding="max_length", max_length=8)["input_ids"]
    plain = tokenizer.backend_tokenizer.to_str()
    assert client_ids(plain, "a cat", 8) != wanted
    assert client_ids(client_t5_json(tokenizer), "a cat", 8) == wanted


def test_the_old_word_is_in_every_part_that_has_the_new_one() -> None:
    tokenizer = own_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Fuse()])
    content = json.loads(client_t5_json(tokenizer))
    parts = [content["pre_tokenizer"]["pretokenizers"][1], content["decoder"]["decoders"][0]]
    assert [(part["prepend_scheme"], part["add_prefix_space"]) for part in parts] == [("always", True)] * 2
    assert "add_prefix_space" not in content["decoder"]["decoders"][1]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    assert json.loads(client_t5_json(tokenizer))["pre_tokenizer"]["add_prefix_space"] is False


class _Own:
    """As much of a transformers tokenizer as is asked for."""

    def __init__(self, backend: Tokenizer, pad: int, eos: int) -> None:
        self.backend_tokenizer, self.pad_token_id, self.eos_token_id, self.eos_token = backend, pad, eos, "</s>"

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.backend_tokenizer.encode(text).ids}


def own_tokenizer(
    vocabulary: tuple[str, ...] = ("<pad>", "</s>", "<unk>", "\u2581", "a"), unknown: int | None = 2, pad: int = 0, eos: int = 1
) -> _Own:
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unknown))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", eos)])
    return _Own(backend, pad, eos)


def other(part: str, value: Any) -> Callable[[], _Own]:
    def make() -> _Own:
        tokenizer = own_tokenizer()
        setattr(tokenizer.backend_tokenizer, part, value)
        return tokenizer

    return make


FIRST = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")])
REFUSED: dict[str, tuple[Callable[[], _Own], str]] = {
    "another pad": (lambda: own_tokenizer(pad=2), r"the Swift client pads with \(expected id 0, got id 2\)"),
    "a piece that it pads with": (
        lambda: own_tokenizer(("<pad>", "</s>", "<unk>", "\u2581", " ")),
        r"the Swift client pads with \(expected id 4, got id 0\)",
    ),
    "another end": (lambda: own_tokenizer(eos=3), r"the Swift client ends a prompt with \(expected id 1, got id 3\)"),
    "no end": (
        other("post_processor", None),
        r"adds other tokens than the Swift client \(expected the end token alone, got ids \[\]\)",
    ),
    "no unknown token": (lambda: own_tokenizer(unknown=None), "the Swift client needs an unknown token"),
    "pieces that Swift takes for one": (
        lambda: own_tokenizer(("<pad>", "</s>", "<unk>", "\u00e9", "e\u0301")),
        "has pieces that are one string in Swift",
    ),
    "a normalizer that it stops at": (
        other("normalizer", normalizers.Strip()),
        r"tokenizer_3: normalizer: the Swift client has T5's own \(expected Precompiled, or none, got Strip\)",
    ),
    "another splitter": (
        other("pre_tokenizer", pre_tokenizers.Whitespace()),
        r"tokenizer_3: pre_tokenizer: the Swift client has T5's own \(expected WhitespaceSplit and Metaspace, got Whitespace\)",
    ),
    "no splitter": (other("pre_tokenizer", None), r"pre_tokenizer: .*got None"),
    "a mark for the first word only": (other("pre_tokenizer", FIRST), r"prepend_scheme: the Swift client marks each word"),
    "another model": (
        lambda: _Own(Tokenizer(models.BPE()), 0, 1),
        r"reads T5's kind of model only \(expected Unigram, got BPE\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_client_would_read_otherwise(make: Callable[[], _Own], message: str) -> None:
    assert t5_complaints(own_tokenizer()) == []
    [complaint] = t5_complaints(make())
    assert re.search(message, str(complaint)), complaint
