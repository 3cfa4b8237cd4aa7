"""Embeddings as diffusers' pipeline makes them, and the transformer as a velocity."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from distillation.networks.conditioning import Conditioning, TextEncoders
from distillation.networks.roles import VelocityTransformer
from exporters.student.student import BUILTIN_STUDENT

PROMPTS = ["a large red circle on a white background", "two blue squares on a gray background"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return StableDiffusion3Pipeline.from_pretrained(BUILTIN_STUDENT, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def encoders(pipeline: Any) -> TextEncoders:
    clips = [pipeline.text_encoder, pipeline.text_encoder_2]
    tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2]
    return TextEncoders(clips, tokenizers, pipeline.text_encoder_3, pipeline.tokenizer_3, 160, 16)


def theirs(pipeline: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            prompts, prompts, prompts, max_sequence_length=16, do_classifier_free_guidance=False, device="cpu"
        )
    return tokens, pooled


def test_embeddings_are_the_pipeline_s(pipeline: Any, encoders: TextEncoders) -> None:
    tokens, pooled = theirs(pipeline, PROMPTS)
    ours = encoders(PROMPTS)
    assert torch.equal(ours.tokens, tokens)
    assert torch.equal(ours.pooled, pooled)
    assert ours.clip_tokens == 16


def test_without_t5_they_are_the_pipeline_s_without_it(pipeline: Any, encoders: TextEncoders) -> None:
    encoder, pipeline.text_encoder_3 = pipeline.text_encoder_3, None
    try:
        tokens, pooled = theirs(pipeline, PROMPTS)
    finally:
        pipeline.text_encoder_3 = encoder
    ours = encoders(PROMPTS)
    dropped = ours.without_t5(torch.tensor([True, True]))
    assert torch.equal(dropped.tokens, tokens)
    assert torch.equal(dropped.pooled, pooled)
    one = ours.without_t5(torch.tensor([True, False]))
    assert torch.equal(one.tokens[0], tokens[0])
    assert torch.equal(one.tokens[1], ours.tokens[1])
    absent = TextEncoders(encoders.clips, encoders.clip_tokenizers, None, None, 160, 16)(PROMPTS)
    assert torch.equal(absent.tokens, tokens)


def test_some_samples_are_told_another_prompt(encoders: TextEncoders) -> None:
    both, empty = encoders(PROMPTS), encoders([""])
    mixed = both.where(torch.tensor([True, False]), empty.repeated(2))
    assert torch.equal(mixed.tokens[0], both.tokens[0])
    assert torch.equal(mixed.tokens[1], empty.tokens[0])
    assert torch.equal(mixed.pooled[1], empty.pooled[0])


def drawn(cond: Conditioning) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(cond.tokens), 16, 8, 8, generator=generator), torch.tensor([0.9, 0.4])


def test_a_velocity_is_the_transformer_s_answer(pipeline: Any, encoders: TextEncoders) -> None:
    cond = encoders(PROMPTS)
    x, t = drawn(cond)
    with torch.no_grad():
        theirs = pipeline.transformer(x, cond.tokens, cond.pooled, torch.tensor([900.0, 400.0]), return_dict=False)[0]
        assert torch.allclose(VelocityTransformer(pipeline.transformer)(x, t, cond), theirs, atol=1e-5)


def test_features_are_what_comes_out_of_the_blocks(pipeline: Any, encoders: TextEncoders) -> None:
    cond = encoders(PROMPTS)
    x, t = drawn(cond)
    network = VelocityTransformer(pipeline.transformer)
    seen = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out[1])) for block in network.transformer.transformer_blocks
    ]
    with torch.no_grad():
        network(x, t, cond)
        for hook in hooks:
            hook.remove()
        features = network.features(x, t, cond, (0, 2))
    assert torch.equal(features[0], seen[0])
    assert torch.equal(features[1], seen[2])


def test_a_copy_is_another_network(pipeline: Any, encoders: TextEncoders) -> None:
    cond = encoders(PROMPTS)
    x, t = drawn(cond)
    network = VelocityTransformer(pipeline.transformer)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        before = network(x, t, cond)
        assert torch.equal(twin(x, t, cond), before)
        next(twin.parameters()).mul_(2)
        assert torch.equal(network(x, t, cond), before)
