"""Latents, prompts and embeddings that were made before, by number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distillation.data.latents import SCALED, LatentsSource
from distillation.data.open import open_source
from distillation.data.settings import LatentsData
from distillation.data.source import DataError, Source

Shard = dict[str, Any]


def shard(first: int = 0, count: int = 2, **metadata: str) -> Shard:
    """Latents, embeddings and prompts that say their number."""
    numbers = torch.arange(first, first + count, dtype=torch.float16)
    tensors = {
        "latents": numbers[:, None, None, None].repeat(1, 4, 2, 2),
        "tokens": numbers[:, None, None].repeat(1, 5, 3),
        "pooled": numbers[:, None].repeat(1, 6),
    }
    said = {"latents": SCALED, "clip_tokens": "2"} | metadata
    return {"tensors": tensors, "metadata": said, "prompts": [f"prompt {number}" for number in range(first, first + count)]}


def opened(folder: Path, **shards: Shard) -> Source:
    for name, content in shards.items():
        save_file(content["tensors"], folder / f"{name}.safetensors", content["metadata"])
        if content["prompts"] is not None:
            lines = [json.dumps({"text": prompt}) + "\n" for prompt in content["prompts"]]
            (folder / f"{name}.jsonl").write_text("".join(lines))
    return open_source(LatentsData(path="."), folder)


def test_samples_of_several_shards(tmp_path: Path) -> None:
    source = opened(tmp_path, b=shard(3, 1), a=shard(0, 3), c=shard(4, 2))
    assert (len(source), source.has_prompts, source.has_pictures) == (6, True, False)
    assert (source.has_latents, source.has_embeddings, source.picture(0)) == (True, True, None)
    for number in (5, 0, 3, 2, 4, 1):
        latent, embeddings = source.latent(number), source.embeddings(number)
        assert latent is not None
        assert embeddings is not None
        assert torch.equal(latent, torch.full((4, 2, 2), number, dtype=torch.float16))
        assert torch.equal(embeddings[0], torch.full((5, 3), number, dtype=torch.float16))
        assert torch.equal(embeddings[1], torch.full((6,), number, dtype=torch.float16))
        assert embeddings[2] == 2
        assert source.prompt(number) == f"prompt {number}"
    with pytest.raises(IndexError, match="there are 6 samples"):
        source.latent(6)


def test_what_is_read_is_one_s_own(tmp_path: Path) -> None:
    source = opened(tmp_path, a=shard())
    first = source.latent(1)
    assert first is not None
    first += 1
    again = source.latent(1)
    assert again is not None
    assert (again == 1).all()


def without(*names: str) -> Callable[[Shard], Shard]:
    def change(content: Shard) -> Shard:
        tensors = {name: tensor for name, tensor in content["tensors"].items() if name not in names}
        return content | {"tensors": tensors} | ({"prompts": None} if "prompts" in names else {})

    return change


def other(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Shard], Shard]:
    return lambda content: content | {"tensors": content["tensors"] | {name: make(content["tensors"][name]).contiguous()}}


def said(**metadata: str | None) -> Callable[[Shard], Shard]:
    def change(content: Shard) -> Shard:
        return content | {
            "metadata": {key: value for key, value in (content["metadata"] | metadata).items() if value is not None}
        }

    return change


def test_prompts_alone_and_embeddings_alone(tmp_path: Path) -> None:
    for name in ("prompts", "embeddings"):
        (tmp_path / name).mkdir()
    source = opened(tmp_path / "prompts", a=without("tokens", "pooled")(shard()))
    assert (source.has_prompts, source.has_embeddings, source.prompt(1), source.embeddings(1)) == (True, False, "prompt 1", None)
    source = opened(tmp_path / "embeddings", a=without("prompts")(shard()))
    assert (source.has_prompts, source.has_embeddings, source.prompt(1)) == (False, True, None)


def test_fingerprints(tmp_path: Path) -> None:
    first = opened(tmp_path, a=shard()).fingerprint
    assert opened(tmp_path, a=shard()).fingerprint == first
    assert opened(tmp_path, a=shard() | {"prompts": ["prompt 0", "prompt X"]}).fingerprint != first
    assert opened(tmp_path, a=shard(scale="2.0")).fingerprint != first
    assert opened(tmp_path, a=shard(), b=shard(2)).fingerprint != first


def test_scaling_is_told(tmp_path: Path) -> None:
    source = opened(tmp_path, a=shard(scale="1.5305", shift="0.0609"))
    assert isinstance(source, LatentsSource)
    assert source.scaling == {"scale": 1.5305, "shift": 0.0609}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (said(latents=None), r"a\.safetensors: does not say that its latents are scaled .*got nothing"),
        (said(latents="z"), r"does not say that its latents are scaled .*expected metadata latents = .*, got z"),
        (said(clip_tokens=None), "does not say how many tokens are CLIP's"),
        (said(clip_tokens="6"), "does not say how many tokens are CLIP's .*got 6"),
        (said(clip_tokens="two"), "does not say how many tokens are CLIP's .*got two"),
        (said(scale="much"), r"a\.safetensors: scale: is no number .*got much"),
        (without("latents"), "has no tensor latents"),
        (without("pooled"), r"has half of the embeddings \(expected tokens and pooled"),
        (without("tokens", "pooled", "prompts"), "has neither prompts nor embeddings"),
        (other("latents", lambda x: x[:, 0]), r"latents: wrong shape \(expected 4 dimensions, none of them 0, got \[2, 2, 2\]"),
        (other("latents", lambda x: x[:0]), "latents: wrong shape"),
        (other("latents", lambda x: x.int()), r"latents: wrong dtype \(expected F16 or BF16 or F32, got I32"),
        (other("tokens", lambda x: x[:1]), r"tokens: is of another number of samples than the latents \(expected 2, got 1"),
        (lambda content: content | {"prompts": ["one"]}, r"a\.jsonl: has another number of prompts .*expected 2, got 1"),
    ],
)
def test_what_cannot_be_learned_from(tmp_path: Path, change: Callable[[Shard], Shard], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path, a=change(shard()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other("latents", lambda x: x[:, :, :1]), r"b\.safetensors: latents: is not that of a\.safetensors .*got \[4, 1, 2\]"),
        (other("tokens", lambda x: x[:, :4]), "tokens: is not that of"),
        (without("prompts"), "prompts: is not that of"),
        (without("tokens", "pooled"), "tokens: is not that of .*got nothing"),
        (said(clip_tokens="3"), "clip_tokens: is not that of .*expected 2, got 3"),
        (said(scale="2.0"), r"scale: is not that of .*expected nothing, got 2\.0"),
        (said(identity="x"), "identity: is not that of"),
    ],
)
def test_shards_of_several_kinds(tmp_path: Path, change: Callable[[Shard], Shard], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path, a=shard(), b=change(shard()))


@pytest.mark.parametrize("numbers", [("0", "2"), ("0", "0"), ("1", "2"), ("0", "x")])
def test_sets_that_are_not_whole(tmp_path: Path, numbers: tuple[str, str]) -> None:
    a, b = (shard(shard=number, shards="3" if "2" in numbers else "2") for number in numbers)
    with pytest.raises(DataError, match=r"is no whole set of shards .*\n.*finish writing them"):
        opened(tmp_path, a=a, b=b)


@pytest.mark.parametrize("name", ["latents", "tokens", "pooled"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number(tmp_path: Path, name: str, value: float) -> None:
    content = shard()
    content["tensors"][name].view(-1)[-1] = value
    source = opened(tmp_path, a=content)
    assert (source.latent(0), source.embeddings(0)) != (None, None)
    with pytest.raises(DataError, match=rf"a\.safetensors: {name}\[1\]: holds NaN or infinity"):
        (source.latent(1), source.embeddings(1))


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_a_file_that_is_cut_short(tmp_path: Path, size: int) -> None:
    opened(tmp_path, a=shard())
    file = tmp_path / "a.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.safetensors: is cut short, or no safetensors file"):
        open_source(LatentsData(path="."), tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no latents \(expected \.safetensors files"):
        open_source(LatentsData(path="."), tmp_path)
    with pytest.raises(DataError, match="nowhere: No such file"):
        open_source(LatentsData(path="nowhere"), tmp_path)
    (tmp_path / "in").mkdir()
    opened(tmp_path, a=shard())
    (tmp_path / "in" / "a.safetensors").symlink_to(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="is a link that leads out of the folder"):
        open_source(LatentsData(path="in"), tmp_path)


@pytest.mark.parametrize(("line", "message"), [("[]\n", "Expected `object`"), ('{"words": "x"}\n', "has no caption")])
def test_a_prompt_that_is_none(tmp_path: Path, line: str, message: str) -> None:
    opened(tmp_path, a=shard())
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' + line)
    source = open_source(LatentsData(path="."), tmp_path)
    assert source.prompt(0) == "one"
    with pytest.raises(DataError, match=rf"a\.jsonl: line 2: {message}"):
        source.prompt(1)
