"""What the world's own networks learn from: data by number, tokenizers, heads that ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from distillation.batches import Batch, Networks
from distillation.loop import Run, run_stage
from distillation.stages import Optimizer, VaeStage
from distillation.world.numbered import pictures, scenes
from distillation.world.scenes import parse, sample
from distillation.world.text import (
    CLIP_TOKENS,
    FAINT,
    T5_TOKENS,
    Attributes,
    clip_encoder,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
    targets,
)

CAPTIONS = [str(scene) for scene in sample(600, 0)]


def vae() -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=2.0, shift_factor=0.5,
    )  # fmt: skip


def test_a_scene_depends_on_its_number_alone() -> None:
    assert scenes(range(3, 6), 1) == scenes(range(6), 1)[3:]
    assert torch.equal(pictures(range(3, 6), 1), pictures(range(6), 1)[3:])
    assert not torch.equal(pictures(range(1), 1), pictures(range(1), 2))


def test_an_autoencoder_learns() -> None:
    """From crops to whole pictures to the decoder alone: the encoder stays in the last part, the error falls."""
    coder = vae()
    stage = VaeStage(name="vae", steps=40, batch=4, crops=0.5, decoder=0.25, optimizer=Optimizer(kind="muon", learning_rate=3e-3))
    kept = {}

    def keep(run: Run, record: dict[str, float]) -> None:
        if run.step == 30:
            kept.update({name: p.clone() for name, p in coder.named_parameters()})

    def batch(step: int) -> Batch:
        return Batch(noise=torch.empty(4, 0), x0=pictures(range(4 * step, 4 * step + 4), 1))

    records = run_stage(stage, Networks(coder), batch, seed=0, on_step=keep).records
    assert records[-1]["psnr"] > records[0]["psnr"] + 3
    for name, parameter in coder.named_parameters():
        if name.startswith("encoder"):
            assert torch.equal(parameter, kept[name])
    assert any(not torch.equal(p, kept[name]) for name, p in coder.named_parameters() if name.startswith("decoder"))


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_the_clip_tokenizer_knows_each_word(pad: str) -> None:
    tokenizer = clip_tokenizer(CAPTIONS, pad)
    words = {word for caption in CAPTIONS for word in caption.split()}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    ids = tokenizer("a red circle", padding="max_length", max_length=CLIP_TOKENS).input_ids
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    assert (ids[0], ids[4]) == (start, end)
    assert ids[5] == tokenizer.convert_tokens_to_ids(pad)
    assert len(tokenizer.tokenize("zebra")) > 1  # spelled out, not unknown


def test_the_t5_tokenizer_knows_each_word() -> None:
    tokenizer = t5_tokenizer(CAPTIONS)
    long = "a red circle left of a blue square and a green cross in the lower right on a gray background"
    assert len(tokenizer(long).input_ids) == len(long.split()) + 1 <= T5_TOKENS
    assert tokenizer(long).input_ids[-1] == 1
    assert tokenizer.unk_token_id not in tokenizer("zebra crossing").input_ids


def test_what_a_long_caption_says_last_only_t5_reads() -> None:
    clip, t5 = clip_tokenizer(CAPTIONS, "!"), t5_tokenizer(CAPTIONS)
    one, other = (
        f"a red circle left of a blue square and a green cross in the lower {side} on a gray background"
        for side in ("left", "right")
    )
    cut = {"padding": "max_length", "truncation": True}
    assert clip(one, max_length=CLIP_TOKENS, **cut).input_ids == clip(other, max_length=CLIP_TOKENS, **cut).input_ids
    assert t5(one, max_length=T5_TOKENS, **cut).input_ids != t5(other, max_length=T5_TOKENS, **cut).input_ids


def test_answers() -> None:
    scene = parse("a striped red and blue circle on a gray background")
    answers = {name: values.item() for name, values in targets([scene]).items()}
    assert (answers["colour 0"], answers["second 0"], answers["fill 0"], answers["colour 1"], answers["count"]) == (1, 3, 3, 0, 1)
    assert targets([parse("three red circles on a gray background")])["count"].item() == 3


def test_encoders_learn_to_say_what_captions_say() -> None:
    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(CAPTIONS, "!"), t5_tokenizer(CAPTIONS)
    asked = Attributes([clip_encoder(clip, 32, "gelu")], [clip], t5_encoder(t5, 32), t5)
    faint = [clip(word).input_ids[1] for word in FAINT]
    before = asked.clips[0].get_input_embeddings().weight[faint].detach().clone()
    plain = asked.clips[0].get_input_embeddings().weight.std()
    assert (before - before.mean(0)).std() < 0.3 * plain
    optimizer = torch.optim.AdamW(asked.parameters(), 3e-3, weight_decay=0)
    losses = []
    for step in range(25):
        drawn = sample(32, 100 + step)
        loss, right = asked([str(scene) for scene in drawn], targets(drawn))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert right["clip_right"] > 0.6
    assert torch.equal(asked.clips[0].get_input_embeddings().weight[faint], before)
