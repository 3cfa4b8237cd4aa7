"""Batches from a source: pictures for an autoencoder, latents and embeddings for a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distillation.batches import Batch
from distillation.counters import Counter
from distillation.data.source import DataError, Source
from distillation.networks.conditioning import Conditioning
from exporters.errors import Complaint

__all__ = ["conditioning", "latent_batch", "picture_batch"]

Encoder = Callable[[Sequence[str]], Conditioning]


def picture_batch(source: Source, numbers: Sequence[int], samples: Sequence[int] = ()) -> Batch:
    """Pictures of these numbers.

    Args:
        source: has pictures.
        numbers: as :func:`distillation.data.order.numbers_of` chooses them.
        samples: their numbers in the step.

    Raises:
        DataError: it has none.
    """
    return Batch(noise=torch.empty(len(numbers), 0), x0=_stacked(source, "picture", numbers), samples=samples)


def latent_batch(
    source: Source,
    numbers: Sequence[int],
    encoder: Encoder | None,
    uncond: Conditioning,
    place: Counter,
    *,
    dropped: float,
    without_t5: float,
) -> Batch:
    """A batch for a teacher: latents, some without a prompt, some without T5.

    Args:
        source: has latents, and prompts or embeddings.
        numbers: as :func:`distillation.data.order.numbers_of` chooses them.
        encoder: of prompts, where the source has no embeddings.
        uncond: embeddings of the empty prompt.
        place: the random numbers'.
        dropped: share of samples that are told the empty prompt, for guidance.
        without_t5: share of samples whose T5 tokens are zeros.

    Raises:
        DataError: the source has no latents, or nothing that can be told.
    """
    x0 = _stacked(source, "latent", numbers).float()
    like = torch.zeros(())
    cond = conditioning(source, numbers, encoder)
    cond = cond.where(place.uniform("prompts", like) >= dropped, uncond.repeated(len(numbers)))
    cond = cond.without_t5(place.uniform("t5", like) < without_t5)
    return Batch(noise=place.normal("start", x0.shape[1:], x0), cond=cond, x0=x0, samples=place.samples)


def conditioning(source: Source, numbers: Sequence[int], encoder: Encoder | None) -> Conditioning:
    """What the samples of these numbers are told: the source's embeddings, or its prompts through an encoder.

    Raises:
        DataError: the source has neither, or prompts alone and there is no encoder.
    """
    if source.has_embeddings:
        each = [part for number in numbers if (part := source.embeddings(number)) is not None]
        tokens, pooled, clip_tokens = zip(*each, strict=True)
        return Conditioning(torch.stack(tokens).float(), torch.stack(pooled).float(), clip_tokens[0])
    if not source.has_prompts or encoder is None:
        complaint = Complaint("data", "has nothing that can be told", "embeddings, or prompts and text encoders")
        raise DataError("A batch cannot be put together.", [complaint])
    return encoder([source.prompt(number) or "" for number in numbers])


def _stacked(source: Source, what: str, numbers: Sequence[int]) -> Tensor:
    """``[numbers, ...]``."""
    parts = [getattr(source, what)(number) for number in numbers]
    if any(part is None for part in parts):
        raise DataError("A batch cannot be put together.", [Complaint("data", f"has no {what}s")])
    return torch.stack(parts)
