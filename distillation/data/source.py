"""What all sources of samples are to those who ask them."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol

from torch import Tensor

from exporters.errors import InputError

__all__ = ["DataError", "Embeddings", "Source", "checked_number", "digest"]

#: Of a prompt: tokens ``[length, width]``, pooled ``[width]``, and how many of the tokens are CLIP's.
Embeddings = tuple[Tensor, Tensor, int]


class DataError(InputError):
    """Samples cannot be read, or are not what they must be."""


class Source(Protocol):
    """Samples by number, from 0; each depends on its own number alone. What a source does not have is None.

    Attributes:
        has_prompts: whether :meth:`prompt` has any; where it has, every sample has one.
        has_pictures: likewise :meth:`picture`.
        has_latents: likewise :meth:`latent`.
        has_embeddings: likewise :meth:`embeddings`.
        fingerprint: a digest of what the samples are, as far as it can be told without reading all of them: names, sizes, counts,
            settings. It does not depend on where a folder lies or when it was written.
    """

    has_prompts: bool = True
    has_pictures: bool = False
    has_latents: bool = False
    has_embeddings: bool = False
    fingerprint: str

    def __len__(self) -> int: ...

    def prompt(self, number: int) -> str | None:
        """What is said of a sample.

        Raises:
            DataError: it cannot be read; the other methods likewise.
            IndexError: there is no such sample; the other methods likewise.
        """
        return None

    def picture(self, number: int) -> Tensor | None:
        """``[3, height, width]`` in [-1, 1], fp32; all of one size."""
        return None

    def latent(self, number: int) -> Tensor | None:
        """``[channels, height, width]``, scaled as the transformer sees them, in the dtype that they are stored in."""
        return None

    def embeddings(self, number: int) -> Embeddings | None:
        """What the text encoders make of the prompt, in the dtype that they are stored in."""
        return None


def checked_number(number: int, length: int) -> int:
    """A sample's number.

    Raises:
        IndexError: there is no such sample; numbers do not count from the end.
    """
    if not 0 <= number < length:
        raise IndexError(f"there are {length} samples, counted from 0; got {number}")
    return number


def digest(*facts: Any) -> str:
    """Of what JSON can say.

    >>> digest("shapes", 3) == digest("shapes", 3) != digest("shapes", 4)
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
