"""A given schedule and given noise, against what diffusers' own scheduler makes of the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from exporters.layouts.sampling import Sampling
from exporters.reference.pinned_scheduler import PinnedScheduler, pinned_scheduler

STEPS, SHAPE, SHIFT = 4, (1, 16, 6, 8), 3.0


def own(stochastic: bool) -> Any:
    """Diffusers' scheduler at the beginning of a picture."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=SHIFT, stochastic_sampling=stochastic)
    scheduler.set_timesteps(STEPS)
    return scheduler


def pinned_to(scheduler: Any, method: Any) -> PinnedScheduler:
    """The same schedule, pinned on a scheduler that would make another and sample the other way."""
    sampling = Sampling(method, tuple(scheduler.sigmas.tolist()), tuple(scheduler.timesteps.tolist()))
    pinned = pinned_scheduler(FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=method == "euler"), sampling)
    pinned.set_timesteps(50)
    return pinned


def sampled(scheduler: Any, dtype: torch.dtype, **options: Any) -> torch.Tensor:
    """Latents after all steps of a velocity that depends on latents and time."""
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
    for timestep in scheduler.timesteps:
        velocity = (latents.float() * 0.3 + timestep / 1000).to(dtype)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False, **options)[0]
    return latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_euler_is_diffusers_own_whatever_noise_is_given(dtype: torch.dtype) -> None:
    scheduler = own(stochastic=False)
    pinned = pinned_to(scheduler, "euler")
    pinned.step_noise = torch.ones(STEPS, *SHAPE[1:])
    assert torch.equal(sampled(pinned, dtype), sampled(scheduler, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_renoising_is_diffusers_own_with_the_noise_of_its_generator(dtype: torch.dtype) -> None:
    """Diffusers draws from the seed as it goes; the pinned one is given the same numbers beforehand. Equal to the last bit."""
    scheduler = own(stochastic=True)
    pinned = pinned_to(scheduler, "renoise")
    generator = torch.Generator().manual_seed(7)
    pinned.step_noise = torch.cat([torch.randn(SHAPE, generator=generator) for _ in range(STEPS)])
    truth = sampled(scheduler, dtype, generator=torch.Generator().manual_seed(7))
    got = sampled(pinned, dtype)
    assert got.dtype == dtype
    assert torch.equal(got, truth)
    pinned.set_timesteps(STEPS)  # another picture with the same scheduler
    pinned.step_noise = pinned.step_noise.flip(0)
    assert not torch.equal(sampled(pinned, dtype), truth)


def test_what_a_step_returns_is_diffusers_own() -> None:
    scheduler = own(stochastic=True)
    pinned = pinned_to(scheduler, "renoise")
    pinned.step_noise = torch.zeros(STEPS, *SHAPE[1:])
    latents = torch.ones(SHAPE)
    ours, theirs = (one.step(latents, one.timesteps[0], latents) for one in (pinned, scheduler))
    assert type(ours) is type(theirs)
    assert ours.prev_sample.shape == theirs.prev_sample.shape


def test_the_schedule_is_the_given_one_and_the_given_scheduler_stays() -> None:
    """Two steps that no scheduler of diffusers makes, whatever number is asked for, and a shift by the picture's size ignored."""
    dynamic: Any = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    before = dynamic.timesteps.clone()
    pinned = pinned_scheduler(dynamic, Sampling("renoise", (0.9, 0.2, 0.0), (900.0, 350.0)))
    pinned.set_timesteps(num_inference_steps=30, device="cpu", mu=1.3)
    assert pinned.num_inference_steps == 2
    assert pinned.sigmas.tolist() == pytest.approx([0.9, 0.2, 0.0])
    assert pinned.timesteps.tolist() == [900.0, 350.0]
    assert pinned.config.stochastic_sampling
    assert not dynamic.config.stochastic_sampling
    assert torch.equal(dynamic.timesteps, before)
