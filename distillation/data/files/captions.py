"""Captions as foreign files hold them: text in UTF-8, or JSON that has one among other things."""

from __future__ import annotations

from typing import Any

import msgspec

from distillation.data.source import DataError
from exporters.errors import Complaint

__all__ = ["KEYS", "caption_of", "decoded", "record"]

#: Under what name JSON has a caption: Hugging Face's, img2dataset's, and that of lists of prompts.
KEYS = ("text", "caption", "prompt")
_MARK = b"\xef\xbb\xbf"  # some editors begin UTF-8 with it


def decoded(content: bytes, where: str) -> str:
    """Text in UTF-8, without space at its ends.

    Raises:
        DataError: it is not.
    """
    try:
        return content.removeprefix(_MARK).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        complaint = Complaint(where, "is not UTF-8", got=f"byte {content[error.start]:#04x} at {error.start}")
        raise DataError("A text cannot be read.", [complaint], "save it in UTF-8") from error


def record(text: str, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: it is none.
    """
    try:
        return msgspec.json.decode(text.encode("utf-8"), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise DataError("A caption cannot be read.", [Complaint(where, str(error), "a JSON object")]) from error


def caption_of(content: dict[str, Any], where: str) -> str:
    """The caption in a JSON object: under the first of :data:`KEYS` that it has.

    Raises:
        DataError: it has none, or it is no text.
    """
    named = [content[key] for key in KEYS if key in content]
    if not named or not isinstance(named[0], str):
        got = type(named[0]).__name__ if named else ", ".join(map(str, content)) or "nothing"
        expected = f"text under one of {', '.join(KEYS)}"
        raise DataError("A caption cannot be read.", [Complaint(where, "has no caption", expected, got)])
    return named[0].strip()
