"""The world of shapes as a source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distillation.data.open import open_source
from distillation.data.settings import ShapesData
from distillation.world.scenes import parse
from distillation.world.score import score


def test_pictures_show_what_their_prompts_say(tmp_path: Path) -> None:
    source = open_source(ShapesData(count=8, seed=3), tmp_path)
    assert (len(source), source.has_pictures, source.has_latents) == (8, True, False)
    for number in range(8):
        prompt, picture = source.prompt(number), source.picture(number)
        assert prompt is not None
        assert picture is not None
        assert (picture.shape, picture.dtype) == ((3, 64, 64), torch.float32)
        assert score((picture.permute(1, 2, 0).numpy() + 1) / 2, parse(prompt))[0].right


def test_numbers_and_seeds(tmp_path: Path) -> None:
    source, longer, other = (open_source(ShapesData(count=n, seed=s), tmp_path) for n, s in ((4, 0), (9, 0), (4, 1)))
    assert [source.prompt(n) for n in range(4)] == [longer.prompt(n) for n in range(4)]
    assert [source.prompt(n) for n in range(4)] != [other.prompt(n) for n in range(4)]
    assert len({source.fingerprint, longer.fingerprint, other.fingerprint}) == 3
    with pytest.raises(IndexError, match="there are 4 samples"):
        source.picture(4)
