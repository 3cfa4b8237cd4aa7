from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from benchmarks.quality.clip_score import clip_scorer
from benchmarks.quality.drawing import Drawn, Wanted, from_line, noise, read_wanted, to_line, wanted_lines
from benchmarks.quality.pictures import PictureQuality, Quality, assess, sign_test, ssim, wilson_interval
from benchmarks.quality.worlds import world_named
from distillation.shape_world import parse_caption, render, sample_captions
from distillation.world import render as scenes_render
from distillation.world import scenes
from exporters.reference.decibels import EQUAL_DB
from quantization.errors import InputError


def pattern() -> np.ndarray:
    """A picture made of whole numbers, ``[24, 32, 3]`` in [0, 1]."""
    y, x = np.mgrid[:24, :32]
    return np.stack([(x + 2 * y) % 17 / 16, (x * y) % 13 / 12, (x + y) / 54], axis=-1)


# Golden: scikit-image 0.26, structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5,
# use_sample_covariance=False, data_range=1.0), which is Wang's published code.
GOLDEN = {
    "equal": (0, 1.0, 1.0),
    "shifted by one pixel": (1, 1.0, 0.5493210706908326),
    "darker": (0, 0.8, 0.9540157734758313),
    "both": (3, 0.5, 0.24789512949770465),
}


@pytest.mark.parametrize(("shift", "gain", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_ssim_is_wangs(shift: int, gain: float, expected: float) -> None:
    """fp64 against fp64: sums over 121 products, in another order."""
    assert ssim(pattern(), gain * np.roll(pattern(), shift, axis=1)) == pytest.approx(expected, rel=1e-12)


def test_ssim_refuses() -> None:
    with pytest.raises(InputError, match="another shape, or not finite"):
        ssim(pattern(), pattern()[:, :-1])
    with pytest.raises(InputError, match="another shape, or not finite"):
        ssim(pattern(), np.where(pattern() > 0.9, np.nan, pattern()))
    with pytest.raises(InputError, match="too small for SSIM"):
        ssim(pattern()[:10], pattern()[:10])


def test_interval_of_a_share() -> None:
    """Wilson's: Agresti and Coull 1998 give 0.7225 to 1 for 10 of 10; the normal approximation would give 1 to 1."""
    low, high = wilson_interval(10, 10)
    assert (round(low, 4), round(high, 4)) == (0.7225, 1.0)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)


def test_interval_covers_as_often_as_it_says() -> None:
    """Of 2000 samples of 500 pictures the share 0.78 lies within 95 %; three standard errors of that count are 1.5 %."""
    right = np.random.default_rng(0).binomial(500, 0.78, 2000)
    inside = [low <= 0.78 <= high for low, high in (wilson_interval(int(k), 500) for k in right)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_sign_test() -> None:
    """Coins: ten heads of ten have 2 in 1024."""
    assert sign_test(10, 0) == 2 / 1024
    assert sign_test(0, 0) == 1.0
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def drawings(count: int, spoil: float = 0.0) -> tuple[list[Wanted], list[Drawn]]:
    """True pictures of captions, the first of them spoiled if so wanted, with latents beside them."""
    captions = sample_captions(count, 3)
    wanted = [Wanted(str(caption), i) for i, caption in enumerate(captions)]
    drawn = [Drawn(render(caption, i), np.full((4, 8, 8), 1.0, np.float32)) for i, caption in enumerate(captions)]
    first = np.clip(drawn[0].picture + np.float32(spoil), 0, 1)
    drawn[0] = Drawn(first, drawn[0].latents * np.float32(1 + spoil))  # type: ignore[operator]
    return wanted, drawn


def test_what_is_assessed() -> None:
    wanted, truth = drawings(6)
    _, spoiled = drawings(6, spoil=0.1)
    judged = assess(wanted, truth, spoiled, "b", scored=4)
    assert judged[0].latent_db == pytest.approx(20, abs=0.01)  # an error of a tenth
    assert judged[0].psnr_db < 25
    assert judged[0].ssim < 1
    assert [(p.psnr_db, p.ssim, p.latent_db) for p in judged[1:]] == [(EQUAL_DB, 1.0, EQUAL_DB)] * 5
    assert [p.right for p in judged] == [None, None, True, True, True, True]
    quality = Quality(reference="r", pictures=judged)
    assert quality.score is not None
    assert (quality.score.count, quality.score.share, quality.score.lost, quality.score.p_value) == (4, 1.0, 0, 1.0)
    assert quality.clip is None


@pytest.mark.parametrize(
    ("name", "true_picture"),
    [
        (None, lambda caption, seed: render(parse_caption(caption), seed)),
        ("shapes", lambda caption, seed: scenes_render.render(scenes.parse(caption), seed)),
    ],
)
def test_a_world_scores_its_own_captions(name: str | None, true_picture: Callable[[str, int], np.ndarray]) -> None:
    world = world_named(name)
    for number, caption in enumerate(world.captions(20, 3)):
        picture = true_picture(caption, number)
        assert world.right(picture, caption)
        assert not world.right(picture[:, ::-1, ::-1] * 0.5, caption)


def test_an_unknown_world() -> None:
    with pytest.raises(InputError, match=r"world.*no scorer knows it.*shapes.*got clouds"):
        world_named("clouds")


def test_scores_are_paired() -> None:
    """Three that the student draws right are lost, one is won."""
    verdicts = [(False, True)] * 3 + [(True, False)] + [(True, True)] * 6
    pictures = [
        PictureQuality(prompt="p", seed=i, psnr_db=30.0, ssim=0.9, right=right, reference_right=reference)
        for i, (right, reference) in enumerate(verdicts)
    ]
    score = Quality(reference="r", pictures=tuple(pictures)).score
    assert score is not None
    assert (score.share, score.reference_share, score.lost, score.won) == (0.7, 0.9, 3, 1)
    assert score.p_value == pytest.approx(2 * (1 + 4) / 16)


def test_what_cannot_be_compared() -> None:
    wanted, truth = drawings(3)
    with pytest.raises(InputError, match=r"pictures are missing \(expected 3, got 2\)"):
        assess(wanted, truth, truth[:2], "b")
    broken = [Drawn(np.full_like(truth[0].picture, np.nan), None), *truth[1:]]
    with pytest.raises(InputError, match="NaN or infinite"):
        assess(wanted, truth, broken, "b")


def test_pictures_travel_bit_for_bit() -> None:
    _, (drawn, *_) = drawings(1, spoil=0.123)
    back = from_line(to_line(drawn), "here")
    assert np.array_equal(back.picture, drawn.picture)
    assert drawn.latents is not None
    assert back.latents is not None
    assert np.array_equal(back.latents, drawn.latents)
    assert from_line(to_line(Drawn(drawn.picture, None)), "here").latents is None
    wanted = [Wanted("“a” é", 3)]
    assert list(read_wanted(wanted_lines(wanted))) == wanted


def test_what_did_not_travel() -> None:
    line = to_line(Drawn(pattern(), None))
    for bad in ("{}", line.replace("24", "25", 1), msgspec.json.encode({"picture": {"shape": [1], "data": "????"}}).decode()):
        with pytest.raises(InputError, match="did not arrive"):
            from_line(bad, "here")
    with pytest.raises(InputError, match="standard input"):
        read_wanted('[{"prompt": 3}]')


def test_noise_is_the_runtimes() -> None:
    """Initial latents first, then a step's after another, of one generator for each seed."""
    rng = np.random.default_rng([5, 0])
    initial, steps = noise(5, (4, 2, 2), 3)
    assert np.array_equal(initial[0], rng.standard_normal((4, 2, 2), np.float32))
    assert np.array_equal(steps, np.concatenate([rng.standard_normal((1, 4, 2, 2), np.float32) for _ in range(3)]))


@pytest.fixture
def clip_folder(tmp_path, students):
    """A CLIP model of two narrow layers with random weights, and the tiny student's tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(students["tiny"].tokenizer_folder("text_encoder"))
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**narrow, "vocab_size": 1 + max(tokenizer.get_vocab().values()), "eos_token_id": tokenizer.eos_token_id},
        vision_config={**narrow, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_clip_scores_are_the_models(clip_folder) -> None:
    """Against the model's own logits, which are the cosine times its temperature."""
    import torch
    from transformers import CLIPModel, CLIPProcessor

    picture = np.rint(255 * pattern()).astype(np.uint8)
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        out = model(**processor(text=["a red circle"], images=[picture], return_tensors="pt", padding=True))
        cosine = float(out.logits_per_image[0, 0] / model.logit_scale.exp())
    (score,) = clip_scorer(clip_folder)([pattern()], ["a red circle"])
    assert score == pytest.approx(100 * max(0.0, cosine), abs=1e-4)


def test_clip_that_is_none(tmp_path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(InputError, match="no CLIP model with safetensors"):
        clip_scorer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be used"):
        clip_scorer(tmp_path)
