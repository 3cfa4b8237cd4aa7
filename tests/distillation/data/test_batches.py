"""Batches from sources: the same whoever shares a step, with what is dropped drawn by counters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distillation.counters import Counter
from distillation.data.batches import conditioning, latent_batch, latents, picture_batch
from distillation.data.open import open_source
from distillation.data.order import numbers_of
from distillation.data.settings import ShapesData
from distillation.data.source import DataError, Embeddings, Source
from distillation.networks.conditioning import Conditioning


class Numbers(Source):
    """Latents, prompts and embeddings that say their number."""

    has_latents = True
    fingerprint = "numbers"

    def __init__(self, has_embeddings: bool) -> None:
        self.has_embeddings = has_embeddings

    def __len__(self) -> int:
        return 10

    def prompt(self, number: int) -> str:
        return f"caption {number}"

    def latent(self, number: int) -> Tensor:
        return torch.full((1, 1, 1), number, dtype=torch.float16)

    def embeddings(self, number: int) -> Embeddings | None:
        return (
            (torch.full((3, 1), number + 1.0).half(), torch.full((1,), number + 1.0).half(), 2) if self.has_embeddings else None
        )


def encoder(captions: Sequence[str]) -> Conditioning:
    numbers = torch.tensor([float(caption.split()[1]) + 1 for caption in captions])
    return Conditioning(numbers[:, None, None].repeat(1, 3, 1), numbers[:, None], clip_tokens=2)


UNCOND = Conditioning(torch.full((1, 3, 1), -1.0), torch.full((1, 1), -1.0), 2)


@pytest.mark.parametrize("embedded", [False, True])
def test_a_batch_for_a_teacher(embedded: bool) -> None:
    place = Counter(0, "teacher", 0, range(400))
    numbers = numbers_of(0, 400, range(400), 10, 0)
    source = Numbers(embedded)
    cond = conditioning(source, numbers, None if embedded else encoder)
    batch = latent_batch(latents(source, numbers), cond, UNCOND, place, without_prompt=0.1, without=(0, 0, 0.4))
    assert batch.x0 is not None
    assert batch.x0.flatten().tolist() == numbers
    told = batch.cond.pooled[:, 0] >= 0
    assert torch.equal(batch.cond.pooled[told, 0], batch.x0[told].flatten() + 1)
    assert abs((~told).float().mean().item() - 0.1) < 4 * (0.09 / 400) ** 0.5
    dropped = (batch.cond.tokens[told, 2] == 0).float().mean().item()  # the empty prompt keeps its own
    assert abs(dropped - 0.4) < 4 * (0.24 / 360) ** 0.5
    assert (batch.cond.tokens[:, :2] != 0).all()
    assert batch.noise.shape == (400, 1, 1, 1)


def test_processes_share_a_step_s_pictures(tmp_path: Path) -> None:
    source = open_source(ShapesData(count=50, seed=1), tmp_path)

    def pictures(samples: range, step: int = 5) -> Tensor:
        x0 = picture_batch(source, numbers_of(step, 4, samples, len(source), 0), samples).x0
        assert x0 is not None
        return x0

    assert torch.equal(pictures(range(4)), torch.cat([pictures(range(2)), pictures(range(2, 4))]))
    assert not torch.equal(pictures(range(4)), pictures(range(4), 6))


def test_what_a_source_has_not(tmp_path: Path) -> None:
    shapes, numbers = open_source(ShapesData(count=5), tmp_path), Numbers(has_embeddings=False)
    place = Counter(0, "teacher", 0, range(2))
    with pytest.raises(DataError, match="has no latents"):
        latents(shapes, [0, 1])
    with pytest.raises(DataError, match="nothing says what the empty prompt is"):
        latent_batch(torch.zeros(2, 1, 1, 1), encoder(["caption 0", "caption 1"]), None, place, without_prompt=0.1)
    with pytest.raises(DataError, match="has no pictures"):
        picture_batch(numbers, [0, 1])
    with pytest.raises(DataError, match="has nothing that can be told"):
        conditioning(numbers, [0, 1], None)
