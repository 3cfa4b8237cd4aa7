"""What a pipeline refuses, by the argument's name, before any graph is loaded."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pytest

from deploy.errors import InputError
from deploy.runtime import Pipeline
from deploy.runtime.sessions import Sessions
from tests.helpers.kept_bundle import V1

LATENTS = np.zeros((3, 16, 2, 2), np.float32)
NOISE = np.zeros((1, 2, 16, 2, 2), np.float32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"num_images": 0}, "num_images: wrong (expected a whole number of at least 1, got 0)"),
    "half an image": ({"num_images": 1.5}, "num_images: wrong (expected a whole number of at least 1, got 1.5)"),
    "images that are true": ({"num_images": True}, "num_images: wrong (expected a whole number of at least 1, got True)"),
    "a negative seed": ({"seed": -1}, "seed: wrong (expected a whole number of at least 0, got -1)"),
    "a negative seed of torch's": ({"seed": -1, "noise": "torch"}, "seed: wrong (expected a whole number"),
    "a seed in words": ({"seed": "7"}, "seed: wrong (expected a whole number of at least 0, got '7')"),
    "no seed": ({"seed": None}, "seed: wrong (expected a whole number of at least 0, got None)"),
    "whose noise": ({"noise": "jax"}, "noise: unknown (expected numpy or torch, got 'jax')"),
    "no prompts": ({"prompt": []}, "prompt: is an empty list (expected at least one prompt)"),
    "a number": ({"prompt": 5}, "prompt: is not text (expected a string, or a list of strings, got int)"),
    "bytes": ({"prompt": b"a cat"}, "prompt: is not text (expected a string, or a list of strings, got bytes)"),
    "a set": ({"prompt": {"a cat"}}, "prompt: is not text (expected a string, or a list of strings, got set)"),
    "a number among texts": ({"prompt": ["a cat", 5]}, "prompt[1]: is not text (expected a string, got int)"),
    "a surrogate": ({"prompt": ["a cat", "\ud800"]}, "PROMPT: is not UTF-8: surrogates not allowed, at character 0"),
    "a height of zero": ({"height": 0}, "--height: this bundle has a fixed size (expected 16 pixels, got 0)"),
    "a width that is no integer": ({"width": 16.0}, "--width: this bundle has a fixed size (expected 16 pixels, got 16.0)"),
    "latents as a list": ({"latents": LATENTS.tolist()}, "--latents: wrong shape (expected [images, 16, 2, 2], got list)"),
    "latents without images": ({"latents": LATENTS[0]}, "--latents: wrong shape (expected [images, 16, 2, 2], got [16, 2, 2])"),
    "latents for some": (
        {"prompt": ["a", "b"], "latents": LATENTS},
        "latents: are not as many for each prompt (expected a multiple",
    ),
    "fewer latents": ({"num_images": 4, "latents": LATENTS}, "num_images: disagrees with the latents (expected 3, got 4)"),
    "latents for torch": ({"seed": (1 << 64) - 1, "noise": "torch", "latents": LATENTS}, "--seed: torch has no such seed"),
    "too large": (
        {"latents": np.full((1, 16, 2, 2), 1e300)},
        "--latents: too large for fp32 (expected at most 3.4e+38, got 1e+300)",
    ),
    "noise of a step": ({"step_noise": NOISE[:, 0]}, "step_noise: wrong shape (expected [1, 2, 16, 2, 2], got [1, 16, 2, 2])"),
    "noise of others": (
        {"num_images": 2, "step_noise": NOISE},
        "step_noise: wrong shape (expected [2, 2, 16, 2, 2], got [1, 2, 16",
    ),
    "no noise": (
        {"step_noise": NOISE * np.nan},
        "step_noise: NaN, infinite or not numbers (expected finite floats, got float32)",
    ),
    "integers": (
        {"step_noise": NOISE.astype(int)},
        "step_noise: NaN, infinite or not numbers (expected finite floats, got int64)",
    ),
}


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    def load(*_: object) -> None:
        raise AssertionError("a graph is loaded before the arguments are looked at")

    monkeypatch.setattr(Sessions, "load", load)
    return Pipeline(V1)


@pytest.mark.parametrize(("arguments", "complaint"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], complaint: str, pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)):
        pipeline.generate(**({"prompt": "a cat"} | arguments))
    with pytest.raises(InputError, match=re.escape(complaint)):
        pipeline.images(**({"prompt": "a cat"} | arguments))


def test_all_that_is_wrong_is_said_at_once(pipeline: Pipeline) -> None:
    with pytest.raises(InputError) as error:
        pipeline.generate("a cat", -1, 0, noise="x")  # type: ignore[arg-type]
    assert [complaint.where for complaint in error.value.complaints] == ["seed", "num_images", "noise"]


def test_a_dynamic_size_must_be_whole(pipeline: Pipeline) -> None:
    picture = msgspec.structs.replace(pipeline.manifest.picture, dynamic=True, multiple_of=16, largest=64)
    pipeline.manifest = msgspec.structs.replace(pipeline.manifest, picture=picture)
    with pytest.raises(InputError, match=r"--height: wrong size \(expected a multiple of 16 from 16 to 64, got 32.0\)"):
        pipeline.generate("a cat", height=32.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [5, None, ["a cat"], b"a cat"])
def test_tokenize_takes_one_text(prompt: Any, pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="prompt: is not text"):
        pipeline.tokenize(prompt)


@pytest.mark.parametrize("threads", [0, 1.5, "2"])
def test_threads_are_counted_in_whole_numbers(threads: Any) -> None:
    with pytest.raises(InputError, match=r"--threads: wrong \(expected 1 to 1024"):
        Pipeline(V1, threads=threads)


def test_numpys_integers_are_whole_numbers() -> None:
    pipeline = Pipeline(V1, threads=1)
    got = pipeline.generate("a cat", np.int64(3), np.int32(2), height=np.int16(16), noise="torch")  # type: ignore[arg-type]
    assert np.array_equal(got, pipeline.generate("a cat", 3, 2, noise="torch"))
