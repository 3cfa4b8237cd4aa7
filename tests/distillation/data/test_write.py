"""Pictures encoded once: what is read again is what the autoencoder and the text encoders say; a run that was stopped goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from distillation.data import write
from distillation.data.open import open_source
from distillation.data.settings import LatentsData, PromptsData, ShapesData
from distillation.data.source import DataError, Source
from distillation.data.write import write_latents
from distillation.networks.conditioning import Conditioning
from quantization.files import WritingError

SHAPES = ShapesData(count=5, seed=2)


class Coder(nn.Module):
    """An autoencoder of one layer, as far as it is asked."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(3, 4, 8, 8)
        self.config = SimpleNamespace(scaling_factor=2.0, shift_factor=0.5)
        self.encoded = 0

    def encode(self, pictures: Tensor) -> Any:
        self.encoded += len(pictures)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.layer(pictures)))


class Text(nn.Module):
    """Embeddings that say how long a prompt is."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, prompts: Sequence[str]) -> Conditioning:
        length = torch.tensor([float(len(prompt)) for prompt in prompts]) * self.factor
        return Conditioning(length[:, None, None].repeat(1, 5, 3), length[:, None].repeat(1, 6), 2)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(SHAPES, tmp_path)


def opened(folder: Path) -> Source:
    return open_source(LatentsData(path="latents"), folder)


@pytest.mark.parametrize("text", [None, Text()], ids=["prompts", "embeddings"])
def test_what_is_read_is_what_was_said(tmp_path: Path, source: Source, text: nn.Module | None) -> None:
    coder, done = Coder(), list[int]()
    write_latents(source, coder, text, tmp_path / "latents", per_shard=2, on_item=done.append)
    assert sorted(file.name for file in (tmp_path / "latents").iterdir() if file.suffix == ".safetensors") == [
        f"latents-0000{index}-of-00003.safetensors" for index in range(3)
    ]
    assert done == sorted(done)
    assert done[-1] == 5
    stored = opened(tmp_path)
    assert (len(stored), stored.has_embeddings) == (5, text is not None)
    for number in range(5):
        picture, prompt, latent = source.picture(number), source.prompt(number), stored.latent(number)
        assert picture is not None
        assert prompt is not None
        assert latent is not None
        with torch.no_grad():
            expected = (coder.layer(picture[None])[0] - 0.5) * 2
        assert latent.dtype == torch.float16
        assert torch.allclose(latent.float(), expected, atol=2e-3)  # half a step of fp16 at 4
        assert stored.prompt(number) == prompt
        if embeddings := stored.embeddings(number):
            assert torch.equal(embeddings[0], torch.full((5, 3), len(prompt), dtype=torch.float16))
            assert embeddings[2] == 2


def test_an_autoencoder_of_diffusers(tmp_path: Path, source: Source) -> None:
    """Its mean, not a sample; without a shift in its configuration there is none."""
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=2.0,
    )  # fmt: skip
    assert vae.config.shift_factor is None
    write_latents(source, vae, None, tmp_path / "latents")
    latent, picture = opened(tmp_path).latent(4), source.picture(4)
    assert latent is not None
    assert picture is not None
    with torch.no_grad():
        expected = vae.encode(picture[None]).latent_dist.mean[0] * 2
    assert latent.shape == (4, 32, 32)
    assert torch.allclose(latent.float(), expected, atol=4e-3)  # half a step of fp16 at 8


def test_few_pixels_at_a_time_make_no_difference(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    write_latents(source, Coder(), None, tmp_path / "latents", per_shard=3)
    monkeypatch.setattr(write, "PIXELS", 2 * 64 * 64 + 1)
    write_latents(source, Coder(), None, tmp_path / "again" / "latents", per_shard=3)
    one, other = opened(tmp_path), opened(tmp_path / "again")
    for number in range(5):
        a, b = one.latent(number), other.latent(number)
        assert a is not None
        assert b is not None
        assert torch.allclose(a, b, atol=4e-3)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, source: Source) -> None:
    write_latents(source, Coder(), Text(), tmp_path / "whole", per_shard=2)

    def stop(done: int) -> None:
        if done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_latents(source, Coder(), Text(), tmp_path / "latents", per_shard=2, on_item=stop)
    with pytest.raises(DataError, match="is no whole set of shards"):
        opened(tmp_path)
    (tmp_path / "latents" / f".latents-00001-of-00003.safetensors.{'0' * 16}.partial").write_bytes(b"half a shard")
    coder = Coder()
    write_latents(source, coder, Text(), tmp_path / "latents", per_shard=2)
    assert coder.encoded == 3
    assert content(tmp_path / "latents") == content(tmp_path / "whole")


@pytest.mark.parametrize("lost", ["latents-00001-of-00003.safetensors", "latents-00001-of-00003.jsonl"])
def test_a_shard_that_lost_a_part_is_written_again(tmp_path: Path, source: Source, lost: str) -> None:
    write_latents(source, Coder(), None, tmp_path / "latents", per_shard=2)
    whole = content(tmp_path / "latents")
    (tmp_path / "latents" / lost).write_bytes(whole[lost][:30])
    coder = Coder()
    write_latents(source, coder, None, tmp_path / "latents", per_shard=2)
    assert coder.encoded == 2
    assert content(tmp_path / "latents") == whole


def test_processes_share_the_shards(tmp_path: Path, source: Source) -> None:
    write_latents(source, Coder(), None, tmp_path / "whole", per_shard=2)
    for process in range(2):
        write_latents(source, Coder(), None, tmp_path / "latents", per_shard=2, share=(process, 2))
    assert content(tmp_path / "latents") == content(tmp_path / "whole")


def test_other_latents_are_never_taken_for_these(tmp_path: Path, source: Source) -> None:
    write_latents(source, Coder(), Text(), tmp_path / "latents", per_shard=2)
    before = content(tmp_path / "latents")
    scaled = Coder()
    scaled.config.scaling_factor = 3.0
    others: list[tuple[Source, Coder, nn.Module | None, int]] = [
        (open_source(ShapesData(count=5, seed=3), tmp_path), Coder(), Text(), 2),
        (source, Coder(1), Text(), 2),
        (source, scaled, Text(), 2),
        (source, Coder(), Text(2.0), 2),
        (source, Coder(), None, 2),
        (source, Coder(), Text(), 3),
    ]
    for what, coder, text, per_shard in others:
        with pytest.raises(DataError, match=r"holds other latents.\n.*latents-00000-of-00003\.safetensors: is of other pictures"):
            write_latents(what, coder, text, tmp_path / "latents", per_shard=per_shard)
    assert content(tmp_path / "latents") == before
    (tmp_path / "latents" / "more.safetensors").write_bytes(b"whatever this is")
    with pytest.raises(DataError, match=r"holds other latents.\n.*more\.safetensors"):
        write_latents(source, Coder(), Text(), tmp_path / "latents", per_shard=2)


def test_what_is_no_number(tmp_path: Path, source: Source) -> None:
    coder = Coder()
    nn.init.constant_(coder.layer.weight, 1e5)
    with pytest.raises(DataError, match=r"sample 0: its latent holds NaN or infinity in fp16(.*\n)+.*compute in fp32"):
        write_latents(source, coder, None, tmp_path / "latents", per_shard=2)
    with pytest.raises(DataError, match="sample 0: its embedding holds NaN or infinity in fp16"):
        write_latents(source, Coder(), Text(1e5), tmp_path / "latents", per_shard=2)
    assert content(tmp_path / "latents") == {}


def test_what_cannot_be_encoded(tmp_path: Path, source: Source) -> None:
    (tmp_path / "p.txt").write_text("a prompt")
    with pytest.raises(DataError, match="data: has no pictures"):
        write_latents(open_source(PromptsData(file="p.txt"), tmp_path), Coder(), None, tmp_path / "latents")
    (tmp_path / "file").write_text("x")
    with pytest.raises(WritingError, match="is no folder"):
        write_latents(source, Coder(), None, tmp_path / "file")
