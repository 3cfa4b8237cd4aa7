"""Torch's own generator is the reference."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from deploy.runtime.torch_noise import LARGEST_SEED, LEAST_SEED, TorchGenerator

# Without vector instructions torch rounds an angle in another place.
ATOL = 1e-6 if torch.backends.cpu.get_cpu_capability() != "DEFAULT" else 1e-5
SEEDS = (0, 1, 123456789, (1 << 32) - 1, 1 << 32, (1 << 32) + 7, (1 << 63) - 1, LARGEST_SEED, -1, LEAST_SEED)


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_are_taken_as_torch_takes_them(seed: int) -> None:
    wanted = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).numpy()
    np.testing.assert_allclose(TorchGenerator(seed).standard_normal((3, 5)), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("size", [*range(41), 255, 256, 257, 1000, 4095, 4096, 4111])
def test_every_size_is_torchs_and_so_is_what_follows(size: int) -> None:
    """Under 16, in whole blocks, with a tail that is drawn twice; then once more, with what waits and where the stream is."""
    reference, own = torch.Generator().manual_seed(size), TorchGenerator(size)
    for count in (size, 3, size, 16):
        wanted = torch.randn(count, generator=reference).numpy()
        np.testing.assert_allclose(own.standard_normal((count,)), wanted, rtol=0, atol=ATOL)


def test_a_pictures_latents() -> None:
    reference, own = torch.Generator().manual_seed(42), TorchGenerator(42)
    for _ in range(3):  # the latents, and what two steps of a re-noising sampler add
        wanted = torch.randn(1, 16, 64, 66, generator=reference).numpy()
        got = own.standard_normal((1, 16, 64, 66))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=0, atol=ATOL)


def test_numpys_own_noise_is_another() -> None:
    """The comparison can fail."""
    wanted = torch.randn(100, generator=torch.Generator().manual_seed(0)).numpy()
    assert np.abs(np.random.default_rng(0).standard_normal(100, np.float32) - wanted).max() > 1


def test_it_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from deploy.runtime.torch_noise import TorchGenerator; TorchGenerator(1)"
    subprocess.run([sys.executable, "-c", code], check=True)
