"""Run a student over prompts, forwards and backwards, and keep what says how sensitive its weights are.

One pass per prompt: draw the picture, send a random projection of it back through VAE, every denoising step, conditioner and
text encoders. Each product's gradients are reduced to two vectors as they pass by (:mod:`quantization.sensitivity`); the Gram
matrices of linear layers' inputs are summed in files that are mapped into memory, for those of a full-size student are larger
than it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import GraphOptions
from exporters.streamed.module import Product, Streaming
from exporters.streamed.pipeline import TorchPipeline
from exporters.student.student import Student
from quantization.calibration import GRAMS, Calibration, CalibrationRecipe, Entry, Key, Layer, gram_file, save_calibration
from quantization.errors import Complaint
from quantization.files import REMEDY, WritingError, reserve, writing
from quantization.schemes import BLOCKS

LIMIT = 10.0
"""A prompt counts at most so many times what the median prompt does, in each component. Where a picture is on the brink of
another one, the gradient tells of a change that no rounding can bring about: 10,000 times the median's was seen."""
_ROUNDED = (0, *BLOCKS)
"""Block sizes for which rounding of activations is measured; 0 for whole tensors."""


@dataclass(frozen=True)
class CalibrationPlan:
    """What a calibration draws, and what it keeps of it.

    Attributes:
        prompts: one pass each.
        seed: of the noise and the projections.
        grams: keep Gram matrices: four bytes for each pair of a layer's inputs, 10 GB for SD3.5-Medium.
    """

    prompts: tuple[str, ...]
    seed: int = 0
    grams: bool = True


class _Sums:
    """Sums of one weight: of the prompt at hand, and of each before it."""

    def __init__(self, layer: Layer, rows: int, columns: int) -> None:
        self.layer, self.shape, self.inputs = layer, (rows, columns), 0
        self.gradient: Tensor | None = None  # a weight that is used at every step adds them up
        self.rounding: dict[int, float] = {}
        self.words: Tensor | None = None  # of an embedding: squares by column
        self.of_prompts: dict[int, _Prompt] = {}
        self.gram: int | None = None
        self.shares_gram = False

    def finish_prompt(self, number: int) -> None:
        """Square what the steps of one prompt have summed to."""
        rows, _ = self.shape
        if self.words is not None:  # a prompt has a few tokens; each row is as likely to be among them
            words = self.words.numpy()
            self.of_prompts[number] = _Prompt(np.full(rows, words.sum() / rows, np.float32), words, {})
        elif self.gradient is not None:
            squares = self.gradient**2
            sides = squares.sum(dim=1).numpy(), squares.sum(dim=0).numpy()
            self.of_prompts[number] = _Prompt(*sides, self.rounding)
        self.gradient, self.words, self.rounding = None, None, {}


@dataclass(frozen=True)
class _Prompt:
    """What one prompt says of one weight: sums of its squared gradient, and what rounding its inputs comes to."""

    rows: np.ndarray
    columns: np.ndarray
    rounding: dict[int, float]


class _Collector:
    """The observer of one calibration."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.sums: dict[Key, _Sums] = {}
        self._grams: list[np.memmap] = []

    def __call__(self, product: Product, x: Tensor, weight_gradient: Tensor, x_gradient: Tensor) -> None:
        key = (product.weight.component, product.weight.name)
        rows = product.weight.shape[0]
        sums = self.sums.setdefault(key, _Sums(_layer(product.layer), rows, product.weight.elements // rows))
        flat = weight_gradient.reshape(len(weight_gradient), -1)
        if isinstance(product.layer, nn.Embedding):
            squares = (flat**2).sum(dim=0)
            sums.words = squares if sums.words is None else sums.words + squares
            return
        sums.gradient = flat if sums.gradient is None else sums.gradient + flat
        channels = 1 if isinstance(product.layer, nn.Conv2d) else -1
        stride = product.layer.stride[0] * product.layer.stride[1] if isinstance(product.layer, nn.Conv2d) else 1
        sums.inputs += x.numel() // x.shape[channels] // int(stride)
        for block in _ROUNDED:
            error = _rounding_error(x.movedim(channels, -1), x_gradient.movedim(channels, -1), block)
            sums.rounding[block] = sums.rounding.get(block, 0.0) + error
        if self.folder is not None and isinstance(product.layer, nn.Linear) and not sums.shares_gram:
            self._add_gram(sums, x.reshape(-1, x.shape[-1]))

    def _add_gram(self, sums: _Sums, x: Tensor) -> None:
        assert self.folder is not None
        if sums.gram is None:
            sums.gram, size = len(self._grams), x.shape[1]
            file = gram_file(self.folder, sums.gram)
            with writing(file):
                self._grams.append(np.lib.format.open_memmap(file, "w+", np.float32, (size, size)))
            reserve(file)
        torch.from_numpy(self._grams[sums.gram]).addmm_(x.T, x)

    def share_grams(self) -> None:
        """After the first prompt: products whose Gram matrices are equal to the last bit share their input; keep one of each."""
        assert self.folder is not None
        first: dict[bytes, int] = {}
        for sums in self.sums.values():
            if sums.gram is not None:
                owner = first.setdefault(hashlib.sha256(self._grams[sums.gram].data).digest(), sums.gram)
                if owner != sums.gram:
                    gram_file(self.folder, sums.gram).unlink()
                    sums.gram, sums.shares_gram = owner, True

    def finish_prompt(self, number: int) -> None:
        """All weights have been told all that a prompt has to say."""
        for sums in self.sums.values():
            sums.finish_prompt(number)

    def means(self, prompts: int) -> dict[Key, _Prompt]:
        """Of all prompts, each as far as :data:`LIMIT` lets it count."""
        energies: dict[str, np.ndarray] = {}
        for (component, _), sums in self.sums.items():
            of_component = energies.setdefault(component, np.zeros(prompts))
            for number, told in sums.of_prompts.items():
                of_component[number] += told.rows.sum(dtype=np.float64)
        weights = {component: _limited(of_component) for component, of_component in energies.items()}
        return {key: _mean(sums, weights[key[0]]) for key, sums in self.sums.items()}


def _limited(energies: np.ndarray) -> np.ndarray:
    """The weight of each prompt: 1, or less where it has more than :data:`LIMIT` times the median energy.

    >>> _limited(np.array([1.0, 2.0, 3.0, 200.0, 2.0])).tolist()
    [1.0, 1.0, 1.0, 0.1, 1.0]
    """
    most = LIMIT * np.median(energies)
    return np.where(energies > most, most / np.maximum(energies, np.finfo(np.float64).tiny), 1.0)


def _mean(sums: _Sums, weights: np.ndarray) -> _Prompt:
    count, (rows, columns), rounding = len(weights), map(np.zeros, sums.shape), dict.fromkeys(_ROUNDED, 0.0)
    for number, told in sums.of_prompts.items():
        weight = float(weights[number]) / count
        rows += weight * told.rows
        columns += weight * told.columns
        for block, error in told.rounding.items():
            rounding[block] += weight * error
    return _Prompt(rows, columns, {} if sums.layer == "embedding" else rounding)


def _layer(module: nn.Module) -> Layer:
    if isinstance(module, nn.Linear):
        return "linear"
    return "convolution" if isinstance(module, nn.Conv2d) else "embedding"


def _rounding_error(x: Tensor, gradient: Tensor, block: int) -> float:
    """Squared gradient times the variance of rounding: one range for the tensor (block 0), or one for each block."""
    if block == 0:
        step = (x.amax().clamp(min=0) - x.amin().clamp(max=0)) / 255
        return float((gradient**2).sum() * step**2 / 12)
    padding = -x.shape[-1] % block
    x, gradient = (nn.functional.pad(t, (0, padding)).unflatten(-1, (-1, block)) for t in (x, gradient))
    step = x.abs().amax(dim=-1) / 127
    return float(((gradient**2).sum(dim=-1) * step**2).sum() / 12)


def _check_disk(folder: Path, pipeline: TorchPipeline) -> None:
    """All Gram matrices lie on the disk at once until the first prompt has shown which of them are equal."""
    linear = {
        (p.weight.component, p.weight.name): p.weight.shape[1] for p in pipeline.products() if isinstance(p.layer, nn.Linear)
    }
    needed, free = sum(4 * size**2 for size in linear.values()), shutil.disk_usage(folder).free
    if needed > free:
        complaint = Complaint(str(folder.parent), "too little disk", f"{needed / 1e6:.2f} MB", f"{free / 1e6:.2f} MB free")
        raise WritingError("The calibration does not fit on the disk.", [complaint], REMEDY)


def calibrate(
    student: Student,
    options: GraphOptions,
    sampling: Sampling,
    plan: CalibrationPlan,
    folder: Path,
    on_prompt: Callable[[int], None] | None = None,
) -> Calibration:
    """Measure the sensitivity of every matrix of the student.

    Args:
        student: the student.
        options: ``native``, of a fixed size.
        sampling: the schedule.
        plan: what is drawn, and what is kept of it.
        folder: an empty folder for the calibration.
        on_prompt: called with the number of prompts that are done.

    Raises:
        WritingError: the disk is too small, which is seen before the start, or fills up.
    """
    (folder / GRAMS).mkdir(exist_ok=True)
    collector = _Collector(folder if plan.grams else None)
    pipeline = TorchPipeline(student, options, sampling, Streaming({}, collector))
    if plan.grams:
        _check_disk(folder, pipeline)
    noise, step_noise = pipeline.noise(len(plan.prompts), plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    for i, prompt in enumerate(plan.prompts):
        start = noise[i : i + 1].requires_grad_()
        picture = pipeline.draw([prompt], start, step_noise[:, i : i + 1]).pictures
        projection = torch.randn(picture.shape, generator=generator) / picture.numel() ** 0.5
        picture.backward(projection)  # type: ignore[no-untyped-call]
        collector.finish_prompt(i)
        if i == 0 and plan.grams:
            collector.share_grams()
        if on_prompt:
            on_prompt(i + 1)
    recipe = CalibrationRecipe(
        fingerprint=student.fingerprint(),
        prompts=plan.prompts,
        seed=plan.seed,
        height=options.height,
        width=options.width,
        timesteps=sampling.timesteps,
        keep_t5=options.keep_t5,
        max_sequence_length=options.max_sequence_length,
        guidance=asdict(sampling.guidance) if sampling.guidance.on else {},
    )
    count = len(plan.prompts)
    means = collector.means(count)
    save_calibration(folder, recipe, _entries(collector, means, count), [(mean.rows, mean.columns) for mean in means.values()])
    return Calibration(folder)


def _entries(collector: _Collector, means: dict[Key, _Prompt], prompts: int) -> list[Entry]:
    return [
        Entry(
            component=component,
            name=name,
            layer=sums.layer,
            inputs=sums.inputs // prompts,
            rounding=means[component, name].rounding,
            gram=sums.gram,
        )
        for (component, name), sums in collector.sums.items()
    ]
