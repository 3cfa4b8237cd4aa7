"""What a picture was drawn with: written into PNG files, in the form that other programs show, and read again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deploy.bundle.folder import Bundle
from deploy.bundle.inspect import inspect_path
from deploy.bundle.told import KEY, TEXT, read_told
from deploy.errors import InputError
from deploy.runtime.pipeline import Pipeline
from tests.helpers.command import flash_deploy, flash_deploy_bytes
from tests.helpers.kept_bundle import V1

PROMPT = 'a cat, 猫: "two" lines\nof text'


def test_a_picture_says_what_draws_it_again(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    done = flash_deploy(
        "generate", V1, PROMPT, "-o", file, "--seed", 7, "--num-images", 2, "--guidance-scale", 2.5, "--negative-prompt", "a dog"
    )
    assert done.returncode == 0, done.stderr
    told = read_told(tmp_path / "x-1.png")
    assert (told.prompt, told.seed, told.image, told.noise) == (PROMPT, 7, 1, "numpy")
    assert (told.guidance_scale, told.negative_prompt, told.runtime) == (2.5, "a dog", "onnxruntime")
    manifest = Pipeline(V1).manifest
    assert (told.height, told.width, told.sigmas) == (16, 16, manifest.sampling.sigmas)
    assert (told.student, told.fingerprint, told.tier) == (manifest.student.name, manifest.student.fingerprint, manifest.tier)
    guidance = {"guidance_scale": told.guidance_scale, "negative_prompt": told.negative_prompt}
    again = Pipeline(V1).images(told.prompt, told.seed or 0, 2, **guidance)  # type: ignore[arg-type]
    with Image.open(tmp_path / "x-1.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(again[told.image]))
        text = picture.text[TEXT]  # type: ignore[attr-defined]
    assert text.startswith(f"{PROMPT}\nNegative prompt: a dog\nSteps: 2, Sampler: euler, CFG scale: 2.5, Seed: 7, Size: 16x16, ")
    content = inspect_path(tmp_path / "x-1.png")
    assert (content["kind"], content["seed"]) == ("picture", 7)
    shown = flash_deploy("inspect", tmp_path / "x-1.png")
    assert shown.returncode == 0, shown.stderr
    assert "seed: 7\n" in shown.stdout
    assert json.loads(flash_deploy("inspect", tmp_path / "x-1.png", "--json").stdout)["prompt"] == PROMPT


def test_it_may_say_nothing(tmp_path: Path) -> None:
    assert flash_deploy("generate", V1, "a cat", "-o", tmp_path / "x.png", "--no-parameters").returncode == 0
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.info == {}
    with pytest.raises(InputError, match="does not say what it was drawn with"):
        read_told(tmp_path / "x.png")


def test_given_latents_have_no_seed(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.zeros((1, 16, 2, 2), np.float32))
    assert flash_deploy("generate", V1, "a cat", "--latents", tmp_path / "l.npy", "-o", tmp_path / "x.png").returncode == 0
    assert read_told(tmp_path / "x.png").seed is None


def png(text: str | None) -> bytes:
    info = PngInfo()
    if text is not None:
        info.add_itxt(KEY, text)
    encoded = io.BytesIO()
    Image.new("RGB", (4, 4)).save(encoded, "PNG", pnginfo=info)
    return encoded.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The picture cannot be read"),
        (b"no picture", "The picture cannot be read"),
        (png("{}")[:60], "The picture cannot be read"),
        (png(None), "The picture says nothing of itself"),
        (png("{"), "What the picture says of itself is damaged"),
        (png('{"prompt": 7}'), "What the picture says of itself is damaged"),
    ],
    ids=["empty", "no PNG", "cut short", "none", "no JSON", "another type"],
)
def test_pictures_that_say_nothing_to_be_read(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=message):
        inspect_path(tmp_path / "x.png")


def test_a_picture_upon_another_says_so(upon_bundle: Bundle, tmp_path: Path) -> None:
    """And the command says where the other is squeezed."""
    Image.new("RGB", (100, 50), "red").save(tmp_path / "red.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "all.png")
    options = ["--image", tmp_path / "red.png", "--mask", tmp_path / "all.png", "--strength", 0.5, "--seed", 3]
    done = flash_deploy("generate", upon_bundle.folder, "a cat", *options, "-o", tmp_path / "x.png")
    assert done.returncode == 0, done.stderr
    assert "note: the picture is 100 x 50 and is squeezed into 64 x 64: crop it to that aspect first" in done.stderr
    told = read_told(tmp_path / "x.png")
    assert (told.upon, told.mask, told.strength) == ("red.png", "all.png", 0.5)
    assert "Denoising strength: 0.5" in told.text()
    with (
        Image.open(tmp_path / "x.png") as drawn,
        Image.open(tmp_path / "red.png") as red,
        Image.open(tmp_path / "all.png") as mask,
    ):
        again = Pipeline(upon_bundle).images("a cat", 3, image=red, mask=mask, strength=0.5)[0]
        assert np.array_equal(np.asarray(drawn), np.asarray(again))
    plain = flash_deploy("generate", upon_bundle.folder, "a cat", "-o", tmp_path / "y.png")
    assert plain.returncode == 0, plain.stderr
    assert not {"upon", "strength", "mask"} & inspect_path(tmp_path / "y.png").keys()
    refused = flash_deploy("generate", upon_bundle.folder, "a cat", "--image", tmp_path / "x.txt", "-o", tmp_path / "z.png")
    assert (refused.returncode, (tmp_path / "z.png").exists()) == (2, False)
    assert "The picture cannot be drawn upon." in refused.stderr


def test_prompts_from_a_file_and_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n", "utf-8")
    done = flash_deploy("generate", V1, "--prompts", tmp_path / "prompts.txt", "--num-images", 2, "-o", tmp_path / "x.png")
    assert done.returncode == 0, done.stderr
    files = [tmp_path / f"x-{i}.png" for i in range(4)]
    drawn = [read_told(file) for file in files]
    assert [(told.prompt, told.image) for told in drawn] == [("a cat", 0), ("a cat", 1), ("a dog", 0), ("a dog", 1)]
    piped = flash_deploy_bytes(b"a dog\n", "generate", V1, "-", "-o", tmp_path / "y.png")
    assert piped.returncode == 0, piped.stderr
    assert (tmp_path / "y.png").read_bytes() == files[2].read_bytes()


def test_a_picture_to_standard_output(tmp_path: Path) -> None:
    done = flash_deploy_bytes(b"", "generate", V1, "a cat", "-o", "-")
    assert done.returncode == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout)) as picture:
        assert picture.size == (16, 16)
        assert msgspec.json.decode(str(picture.text[KEY]))["prompt"] == "a cat"  # type: ignore[attr-defined]
    refused = flash_deploy("generate", V1, "a cat", "-o", "-", "--num-images", 2)
    assert refused.returncode == 2
    assert "standard output takes one picture (expected 1, got 2)" in refused.stderr


def test_previews_lie_beside_the_pictures(tmp_path: Path) -> None:
    done = flash_deploy("generate", V1, "a cat", "-o", tmp_path / "x.png", "--num-images", 2, "--previews")
    assert done.returncode == 0, done.stderr
    steps = [[tmp_path / f"x-{i}-step-{step}.png" for step in (1, 2)] for i in (0, 1)]
    assert {file.name for file in tmp_path.iterdir()} == {file.name for row in steps for file in row} | {"x-0.png", "x-1.png"}
    for i, (first, last) in enumerate(steps):
        drawn, half, whole = (np.asarray(Image.open(file)) for file in (tmp_path / f"x-{i}.png", first, last))
        assert np.array_equal(whole, drawn)
        assert not np.array_equal(half, drawn)
    refused = flash_deploy("generate", V1, "a cat", "-o", "-", "--previews")
    assert (refused.returncode, "--previews: are written beside a picture's file" in refused.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [[], ["a cat", "--prompts", "prompts.txt"]], ids=["nothing", "both"])
def test_it_must_be_clear_what_to_draw(arguments: list[str], tmp_path: Path) -> None:
    done = flash_deploy("generate", V1, *arguments, "-o", tmp_path / "x.png")
    assert done.returncode == 2
    assert "PROMPT and --prompts" in done.stderr
