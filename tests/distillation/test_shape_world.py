from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distillation.shape_world import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    Caption,
    Verdict,
    accuracy,
    parse_caption,
    render,
    sample_captions,
    score,
)

CAPTIONS = sample_captions(300, seed=1)


def test_captions_survive_a_round_trip() -> None:
    assert [parse_caption(str(caption)) for caption in CAPTIONS] == CAPTIONS
    assert {caption.kind for caption in CAPTIONS} == {"single", "relation", "counting"}


@pytest.mark.parametrize(
    "text",
    [
        "a red circle on a white background",
        "a small red circle",
        "a small orange circle on a white background",
        "five red circles on a gray background",
        "",
    ],
)
def test_other_captions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="this world"):
        parse_caption(text)


@pytest.mark.parametrize("noise", [0, 15], ids=["clean", "noise of sd 15"])
def test_every_true_picture_passes(noise: float) -> None:
    rng = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        picture = render(caption, i) + rng.normal(0, noise / 255, (64, 64, 3)).astype(np.float32)
        assert score(picture, caption).right, (str(caption), i)


def wrong_captions(caption: Caption) -> list[Caption]:
    """Captions that differ in one thing and are false of a true picture."""
    (colour, shape), *rest = caption.objects
    other_colour = next(c for c in COLOURS if c not in {c for c, _ in caption.objects})
    other_shape = next(s for s in SHAPES if s not in {s for _, s in caption.objects})
    wrong = [
        replace(caption, background=next(b for b in BACKGROUNDS if b != caption.background)),
        replace(caption, objects=((other_colour, shape), *rest)),
        replace(caption, objects=((colour, other_shape), *rest)),
    ]
    if caption.kind == "single":
        wrong.append(replace(caption, size="small" if caption.size == "large" else "large"))
        wrong.append(Caption("counting", caption.objects * 2, caption.background))
    elif caption.kind == "counting":
        wrong.append(replace(caption, objects=caption.objects[:-1] if len(caption.objects) > 2 else caption.objects * 2))
    elif caption.objects[0] != caption.objects[1]:
        wrong += [replace(caption, relation=relation) for relation in RELATIONS if relation != caption.relation]
        wrong.append(replace(caption, objects=caption.objects[::-1]))
    return wrong


def test_every_wrong_caption_fails() -> None:
    for i, caption in enumerate(CAPTIONS):
        picture = render(caption, i)
        for wrong in wrong_captions(caption):
            assert not score(picture, wrong).right, (str(caption), str(wrong))


def test_what_is_wrong_is_said() -> None:
    picture = render(parse_caption("a red circle left of a blue square on a white background"), 0)
    assert score(picture, parse_caption("a red circle left of a blue square on a black background")) == Verdict(False, True, True)
    assert score(picture, parse_caption("a red circle above a blue square on a white background")) == Verdict(True, True, False)
    assert score(picture, parse_caption("a red circle left of a blue cross on a white background")) == Verdict(True, False, False)


@pytest.mark.parametrize("picture", [np.zeros((64, 64, 3)), np.random.default_rng(0).random((64, 64, 3))], ids=["black", "noise"])
def test_nothing_is_seen_in_nothing(picture: np.ndarray) -> None:
    assert not any(score(picture, caption).objects for caption in CAPTIONS)


def test_bad_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="finite picture"):
        score(np.full((64, 64, 3), np.nan), CAPTIONS[0])
    with pytest.raises(ValueError, match=r"got \[32, 64, 3\]"):
        score(np.zeros((32, 64, 3)), CAPTIONS[0])


def test_accuracy_by_hand() -> None:
    verdicts = [Verdict(True, True, True)] * 3 + [Verdict(True, True, False)]
    share, half = accuracy(verdicts)
    assert (share, half) == (0.75, pytest.approx(1.96 * (0.75 * 0.25 / 4) ** 0.5))
