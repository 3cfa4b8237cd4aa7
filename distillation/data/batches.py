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

__all__ = ["conditioning", "latent_batch", "latents", "picture_batch"]

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


def latents(source: Source, numbers: Sequence[int]) -> Tensor:
    """The source's latents, ``[numbers, channels, height, width]``, in fp32.

    Raises:
        DataError: it has none.
    """
    return _stacked(source, "latent", numbers).float()


def latent_batch(
    x0: Tensor,
    cond: Conditioning,
    uncond: Conditioning | None,
    place: Counter,
    *,
    without_prompt: float,
    without: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Batch:
    """A batch for a teacher: latents, some without a prompt, some without one of the text encoders.

    Args:
        x0: latents.
        cond: what is said of them.
        uncond: embeddings of the empty prompt.
        place: the random numbers'.
        without_prompt: share of samples that are told the empty prompt, for guidance.
        without: share of samples for which each encoder is zeros: CLIP-L, CLIP-G, T5.

    Raises:
        DataError: samples shall be without a prompt, and there is no empty one.
    """
    for encoder, share in enumerate(without):
        if share:
            dropped = place.uniform(f"encoder {encoder}", x0) < share
            cond = cond.without_t5(dropped) if encoder == 2 else cond.without_clip(encoder, dropped)
    if without_prompt:
        if uncond is None:
            expected = "text encoders, or without_prompt = 0"
            complaint = Complaint("without_prompt", "nothing says what the empty prompt is", expected)
            raise DataError("A batch cannot be put together.", [complaint])
        cond = cond.where(place.uniform("prompts", x0) >= without_prompt, uncond.repeated(len(x0)))
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
