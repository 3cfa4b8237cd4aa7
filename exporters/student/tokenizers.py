"""The tokenizers of a student, checked against its text encoders."""

from __future__ import annotations

from typing import Any

from exporters.choices import ENCODER_IDS
from exporters.errors import Complaint, StudentError
from exporters.student.student import Student

Tokenizers = tuple[tuple[str, str, Any], ...]
"""``(graph input, folder name, transformers tokenizer)`` of each text encoder."""


def open_tokenizers(student: Student, keep_t5: bool) -> Tokenizers:
    """The tokenizers of each encoder that is kept.

    Raises:
        StudentError: a tokenizer cannot be read, or does not fit its encoder.
    """
    kept = [name for name in ENCODER_IDS if name in student.weights and (keep_t5 or name != "text_encoder_3")]
    opened, complaints = [], []
    for component in kept:
        folder = student.tokenizer_folder(component)
        try:
            tokenizer = load_tokenizer(student, component)
        except Exception as error:  # noqa: BLE001  (transformers and tokenizers raise many kinds)
            complaints.append(Complaint(str(folder), f"cannot be read: {type(error).__name__}: {error}"))
            continue
        complaints += _check(component, tokenizer, student)
        opened.append((ENCODER_IDS[component], folder.name, tokenizer))
    if complaints:
        raise StudentError("The tokenizers of the student cannot be used.", complaints)
    return tuple(opened)


def _check(component: str, tokenizer: Any, student: Student) -> list[Complaint]:
    """Every id must have an embedding, and the first CLIP tokenizer says how long the text is, as in diffusers."""
    where, complaints = str(student.tokenizer_folder(component)), []
    rows = student.configs[component]["vocab_size"]
    if (highest := max(tokenizer.get_vocab().values(), default=-1)) >= rows:
        expected = f"ids below {rows}, the vocab_size of {component}"
        complaints.append(Complaint(where, "has tokens that the encoder does not know", expected, f"id {highest}"))
    if (pad := tokenizer.pad_token_id) is None:
        complaints.append(Complaint(where, "has no pad_token"))
    elif not 0 <= pad < rows:
        complaints.append(Complaint(where, "pad_token is unknown to the encoder", f"an id below {rows}", str(pad)))
    length = tokenizer.model_max_length
    if component == "text_encoder":
        limit = student.configs[component]["max_position_embeddings"]
        least = 1 + tokenizer.num_special_tokens_to_add()
        if not isinstance(length, int) or isinstance(length, bool) or not least <= length <= limit:
            expected = f"{least} to {limit}, the positions of {component}"
            complaints.append(Complaint(where, "model_max_length is missing or wrong", expected, repr(length)))
    return complaints


def load_tokenizer(student: Student, component: str) -> Any:
    """The tokenizer of a text encoder, as transformers loads it."""
    import transformers

    library: Any = transformers
    kind = library.T5TokenizerFast if component == "text_encoder_3" else library.CLIPTokenizer
    return kind.from_pretrained(student.tokenizer_folder(component), local_files_only=True)
