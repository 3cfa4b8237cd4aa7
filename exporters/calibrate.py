"""Run a student over prompts, forwards and backwards, and keep what says how sensitive its weights are.

One pass per prompt: draw the picture, send a random projection of it back through VAE, every denoising step, conditioner and
text encoders. Each product's gradients are reduced to two vectors as they pass by (:mod:`quantization.sensitivity`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from exporters.graphs import GraphOptions
from exporters.sampling import Sampling
from exporters.streamed import Product, Streaming
from exporters.student import Student
from exporters.torch_pipeline import TorchPipeline
from quantization.sensitivity import Sensitivity

Key = tuple[str, str]
"""A weight: (component, tensor name)."""


class _Sums:
    """Running sums of one weight."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = np.zeros(rows), np.zeros(columns)
        self.gradient: Tensor | None = None  # of the current prompt: a weight that is used at every step adds them up
        self.rounding: dict[int, float] = {}


class _Collector:
    """The observer of one calibration."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks = blocks
        self.sums: dict[Key, _Sums] = {}

    def __call__(self, product: Product, x: Tensor, weight_gradient: Tensor, x_gradient: Tensor) -> None:
        key = (product.weight.component, product.weight.name)
        rows = product.weight.shape[0]
        sums = self.sums.setdefault(key, _Sums(rows, product.weight.elements // rows))
        flat = weight_gradient.reshape(len(weight_gradient), -1)
        if isinstance(product.layer, nn.Embedding):  # a prompt has a few tokens; each row is as likely to be among them
            squares = (flat**2).sum(dim=0).double().numpy()
            sums.columns += squares
            sums.rows += squares.sum() / rows
            return
        sums.gradient = flat if sums.gradient is None else sums.gradient + flat
        channels = 1 if isinstance(product.layer, nn.Conv2d) else -1
        for block in self.blocks:
            error = _rounding_error(x.movedim(channels, -1), x_gradient.movedim(channels, -1), block)
            sums.rounding[block] = sums.rounding.get(block, 0.0) + error

    def finish_prompt(self) -> None:
        """Square what the steps of one prompt have summed to."""
        for sums in self.sums.values():
            if sums.gradient is not None:
                squares = sums.gradient**2
                sums.rows += squares.sum(dim=1).double().numpy()
                sums.columns += squares.sum(dim=0).double().numpy()
                sums.gradient = None


def _rounding_error(x: Tensor, gradient: Tensor, block: int) -> float:
    """Squared gradient times the variance of rounding: one range for the tensor (block 0), or one for each block."""
    if block == 0:
        step = (x.amax().clamp(min=0) - x.amin().clamp(max=0)) / 255
        return float((gradient**2).sum() * step**2 / 12)
    padding = -x.shape[-1] % block
    x, gradient = (nn.functional.pad(t, (0, padding)).unflatten(-1, (-1, block)) for t in (x, gradient))
    step = x.abs().amax(dim=-1) / 127
    return float(((gradient**2).sum(dim=-1) * step**2).sum() / 12)


def calibrate(
    student: Student,
    options: GraphOptions,
    sampling: Sampling,
    prompts: Sequence[str],
    blocks: Sequence[int] = (0, 32, 128),
    seed: int = 0,
    on_prompt: Callable[[int], None] | None = None,
) -> dict[Key, Sensitivity]:
    """Measure the sensitivity of every matrix of the student.

    Args:
        student: the student.
        options: ``native``, of a fixed size.
        sampling: the schedule.
        prompts: one pass each.
        blocks: block sizes for which rounding of activations is measured; 0 for whole tensors.
        seed: of the noise and the projections.
        on_prompt: called with the number of prompts that are done.
    """
    collector = _Collector(blocks)
    pipeline = TorchPipeline(student, options, sampling, Streaming({}, collector))
    noise, step_noise = pipeline.noise(len(prompts), seed)
    generator = torch.Generator().manual_seed(seed)
    for i, prompt in enumerate(prompts):
        start = noise[i : i + 1].requires_grad_()
        picture = pipeline.draw([prompt], start, step_noise[:, i : i + 1]).pictures
        projection = torch.randn(picture.shape, generator=generator) / picture.numel() ** 0.5
        picture.backward(projection)  # type: ignore[no-untyped-call]
        collector.finish_prompt()
        if on_prompt:
            on_prompt(i + 1)
    count = len(prompts)
    return {
        key: Sensitivity(sums.rows / count, sums.columns / count, {b: e / count for b, e in sums.rounding.items()})
        for key, sums in collector.sums.items()
    }
