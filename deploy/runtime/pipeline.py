"""Text to picture from a bundle: numpy, onnxruntime and tokenizers, no torch.

Graphs are loaded one after another (text, conditioner, denoiser, VAE) and freed each, so that the peak is the largest
graph, not their sum.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

import numpy as np

from deploy.bundle.folder import Bundle, open_bundle
from deploy.errors import BundleError, Complaint
from deploy.runtime.arguments import (
    DrawingOptions,
    GuidanceOptions,
    PreviewCallback,
    Progress,
    StepCallback,
    check_choices,
    checked_prompt,
    guidance_of,
    listed_prompts,
    picture_size,
    pictures_of_each,
)
from deploy.runtime.eight_bit import as_images
from deploy.runtime.layouts import Condition, Stages, stages_of
from deploy.runtime.noise import Generator, Noise, PictureNoise, drawn_latents, generators, given_latents, given_step_noise
from deploy.runtime.sampler import OnStep, Step, combined, euler, inpainted, noised, renoise, sample
from deploy.runtime.sessions import Run, Sessions, fastest_runtime
from deploy.runtime.tokenizer import encode, load_tokenizer, tokens_cut
from deploy.runtime.upon import Picture, Upon, checked_upon
from exporters.choices import Runtime
from exporters.guidance import Guidance, Side, guided_velocity
from exporters.scales import Size, resized, step_sizes

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class _Encoded:
    """Latents of what is drawn upon, ``[pictures, channels, height / 8, width / 8]``."""

    latents: np.ndarray
    upon: Upon


@dataclass
class _Clean:
    """The clean latents that the last step predicted."""

    latents: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class _Told:
    """Who is told of steps."""

    report: Progress
    callback: StepCallback | None
    previews: PreviewCallback | None


@dataclass(frozen=True)
class _Guided:
    """What the denoiser is told of one prompt, and of what it is guided by."""

    guidance: Guidance
    sides: Mapping[Side, Condition]


class Pipeline:
    """A bundle that can be asked for pictures.

    It closes itself at the end of a ``with``; whoever does without calls :meth:`close`, or lets go of it.

    Threads may share a pipeline: their calls wait for one another, since one call's graphs are freed for the next one's. Threads
    that are to draw at the same time have a pipeline each.

    Args:
        bundle: an opened bundle or its folder.
        provider: onnxruntime execution provider, for example ``cpu`` or ``cuda``.
        threads: threads of one operator; by default the runtime's choice.
        runtime: ``onnxruntime`` or ``openvino``; by default the tier's fastest that is installed (:func:`fastest_runtime`).
        keep_graphs: keep graphs loaded between stages and calls: faster the second time, more memory.

    Raises:
        InputError: the bundle is damaged or the provider is not there.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        provider: str = "cpu",
        threads: int | None = None,
        keep_graphs: bool = False,
        runtime: Runtime | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.manifest = self.bundle.manifest
        self.runtime = runtime or fastest_runtime(self.bundle, provider)
        self._sessions = Sessions(self.bundle, self.runtime, provider, threads, keep_graphs)
        self._tokenizers = {t.input: load_tokenizer(self.bundle.folder, t) for t in self.manifest.text.tokenizers}
        self._lock = threading.RLock()  # reentrant: a callback may ask its own pipeline for something

    def __enter__(self) -> Self:
        self._sessions.check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the graphs, after whatever another thread is drawing; a second time does nothing.

        Whoever uses the pipeline afterwards gets an :class:`~deploy.errors.InputError`.
        """
        with self._lock:
            self._sessions.close()

    def generate(
        self,
        prompt: str | Sequence[str],
        seed: int = 0,
        num_images: int = 1,
        latents: np.ndarray | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        image: Picture | None = None,
        strength: float | None = None,
        mask: Picture | None = None,
        step_noise: np.ndarray | None = None,
        progress: Progress | None = None,
        noise: Noise = "numpy",
        callback: StepCallback | None = None,
        previews: PreviewCallback | None = None,
        **guidance: Unpack[GuidanceOptions],
    ) -> np.ndarray:
        """Draw pictures of one prompt or of several.

        The same seed and prompt make the same picture, whatever is drawn beside it: picture i of a prompt does not depend on
        ``num_images`` nor on the other prompts. Two prompts of one call begin with the same noise.

        Args:
            prompt: what to draw; of several, all pictures of the first come first.
            seed: of the initial noise, at least 0.
            num_images: how many pictures of each prompt.
            latents: initial noise ``[pictures, channels, height / 8, width / 8]`` in place of the seed's, as many for each
                prompt; ``num_images`` may be left out. Of a student whose latents grow they may be of the first step's size;
                larger ones are cut to it.
            height: picture height in pixels, of a bundle with a dynamic size.
            width: picture width in pixels, of a bundle with a dynamic size.
            image: a picture to draw upon, of Pillow (resized) or an array ``[height, width, 3]`` in [0, 1], for all pictures; the
                bundle must have the VAE's encoder. Its latents are drawn from what the encoder says, with noise of the seed.
            strength: the share of the schedule's steps that is made upon ``image``: 1 leaves nothing of it, and of few steps
                there are few strengths. Default: 0.6, as in diffusers, whose pipelines for this are followed.
            mask: what of ``image`` is drawn anew (white, 1) and what stays (black, 0): of Pillow, or ``[height, width]``.
            step_noise: what a re-noising sampler adds, ``[pictures, steps, channels, height / 8, width / 8]``, in place of
                the seed's.
            progress: told of every stage and step.
            noise: whose noise a seed means: ``numpy``'s (picture i has its own stream of the seed), or what ``torch``'s CPU
                generator draws in fp32, as diffusers does it: picture i has the seed + i, and a re-noising sampler goes on with
                its picture's generator.
            callback: called after each step of each picture with the step (from 0), the number of steps, and a copy of the
                latents ``[1, channels, height / 8, width / 8]`` after it, fp32. Pictures follow one another. Whatever it raises
                ends the call, and comes out of it.
            previews: called likewise with what the picture would be, ``[height, width, 3]`` in [0, 1]: the clean latents that the
                step predicts, decoded by the bundle's VAE, which each time is one more run of it (an ``AutoencoderTiny`` makes
                that a small one). Without ``keep_graphs`` denoiser and VAE are loaded again each time, too.
            guidance: how pictures are guided, where that is not to be as the bundle has it: ``guidance_scale`` (1 for none),
                ``negative_prompt`` (one for all, or one for each prompt), ``guidance_interval``, ``skip_guidance_layers`` and
                the rest of :class:`exporters.guidance.Guidance`. A guided step asks the network twice.

        Returns:
            ``[pictures, height, width, 3]``, fp32 in [0, 1].

        Raises:
            InputError: an argument is wrong or does not fit the bundle, a result is not finite, or the pipeline is closed.
        """
        with self._lock:
            report = progress or _silent
            self._sessions.check_open()
            check_choices({"seed": seed, "num_images": num_images}, noise)
            prompts = listed_prompts(prompt)
            guided = guidance_of(self.manifest, guidance, len(prompts))
            size = picture_size(self.manifest, height, width)
            upon = checked_upon(image, strength, mask, self.manifest, size)
            shape = self._latent_shape(size)
            sizes = step_sizes(self.manifest.sampling.scales, shape[1:], self._steps)
            given = None if latents is None else given_latents(latents, shape, sizes[0])
            each = pictures_of_each(num_images, len(prompts), given)
            drawers = [one for _ in prompts for one in generators(int(seed), int(each), noise)]
            encoded = None if upon is None else self._encoded(upon, drawers, report)
            start = drawn_latents(drawers, (*shape[:1], *sizes[0])) if given is None else given
            added = None if step_noise is None else given_step_noise(step_noise, (len(start), self._steps, *shape))
            conditions = self._conditions(prompts, guided, report)
            told = _Told(report, callback, previews)
            samples = self._denoised(conditions, PictureNoise(start, drawers, sizes, added), encoded, told)
            return self._decoded(samples, report)

    def images(
        self,
        prompt: str | Sequence[str],
        seed: int = 0,
        num_images: int = 1,
        latents: np.ndarray | None = None,
        height: int | None = None,
        width: int | None = None,
        **options: Unpack[DrawingOptions],
    ) -> list[Image.Image]:
        """The pictures of :meth:`generate`, which says what the arguments are, as 8-bit RGB images of Pillow.

        Raises:
            InputError: as :meth:`generate`.
        """
        return as_images(self.generate(prompt, seed, num_images, latents, height, width, **options))

    def tokenize(self, prompt: str) -> dict[str, np.ndarray]:
        """Token ids by graph input, each ``[1, length]``.

        Raises:
            InputError: the prompt is not text that UTF-8 can hold, or the pipeline is closed.
        """
        self._sessions.check_open()
        text = checked_prompt(prompt)
        return {name: encode(tokenizer, text) for name, tokenizer in self._tokenizers.items()}

    def tokens_cut(self, prompt: str) -> dict[str, int]:
        """How many tokens of the prompt each encoder does not see, where there are any."""
        self.tokenize(prompt)  # complains of what is no text
        return {name: cut for name, tokenizer in self._tokenizers.items() if (cut := tokens_cut(tokenizer, prompt))}

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run one graph of the bundle."""
        with self._lock:
            return self._sessions.run(graph, inputs)

    def load(self, graph: str) -> Run:
        """Load one graph of the bundle, to be run by the caller again and again; closing the pipeline leaves it to them."""
        self._sessions.check_open()
        return self._sessions.load(graph)

    @property
    def _stages(self) -> Stages:
        return stages_of(self)  # not kept: a circle of references would hold graphs until the collector comes by

    @property
    def _steps(self) -> int:
        return len(self.manifest.sampling.timesteps)

    def _latent_shape(self, size: Size) -> tuple[int, ...]:
        """``[channels, height / 8, width / 8]``."""
        picture = self.manifest.picture
        return (picture.latent_channels, *(side // picture.pixels_per_latent for side in size))

    def _encoded(self, upon: Upon, drawers: Sequence[Generator], report: Progress) -> _Encoded:
        """What is drawn upon, as each picture's latents: drawn from what the encoder says, before anything else is drawn."""
        report("encode", 0, 1)
        with self._sessions.stage():
            mean, deviation = self._stages.encode(upon.picture)
        clean = np.repeat(self._finite(mean, "the encoded picture"), len(drawers), axis=0)
        if deviation is not None:
            clean = clean + self._finite(deviation, "the encoded picture") * drawn_latents(drawers, mean.shape[1:])
        report("encode", 1, 1)
        return _Encoded(clean, upon)

    def _conditions(self, prompts: Sequence[str], guided: Sequence[Guidance], report: Progress) -> list[_Guided]:
        report("text", 0, 1)
        stages, sigmas = self._stages, self.manifest.sampling.sigmas
        negatives = [one.negative_prompt for one in guided if "negative" in one.sides(sigmas)]
        texts = list(dict.fromkeys((*prompts, *negatives)))  # each is read once
        with self._sessions.stage():
            conditions = dict(zip(texts, stages.conditions([self.tokenize(text) for text in texts]), strict=True))
        return [_Guided(one, self._sides(one, prompt, conditions)) for one, prompt in zip(guided, prompts, strict=True)]

    def _sides(self, guidance: Guidance, prompt: str, conditions: Mapping[str, Condition]) -> dict[Side, Condition]:
        wanted = guidance.sides(self.manifest.sampling.sigmas)
        sides: dict[Side, Condition] = {"prompt": conditions[prompt]}
        if "negative" in wanted:
            sides["negative"] = conditions[guidance.negative_prompt]
        if "skipped" in wanted:
            sides["skipped"] = self._stages.without(conditions[prompt], guidance.skip_guidance_layers)
        return sides

    def _denoised(
        self,
        conditions: Sequence[_Guided],
        noise: PictureNoise,
        encoded: _Encoded | None,
        told: _Told,
    ) -> list[np.ndarray]:
        """Latents of each picture after its last step."""
        count, steps = len(noise.latents), self._steps - (encoded.upon.first if encoded else 0)
        each, clean = count // len(conditions), _Clean()

        def after_step(picture: int, step: int, latents: np.ndarray) -> None:
            told.report("denoise", picture * steps + step + 1, count * steps)
            if told.callback:
                told.callback(step, steps, latents.copy())
            if told.previews:
                told.previews(step, steps, self._preview(clean.latents, noise, encoded, picture))

        samples = []
        with self._sessions.stage():
            for i in range(count):
                told.report("denoise", i * steps, count * steps)
                on_step = functools.partial(after_step, i)
                step, start = self._step(conditions[i // each], noise, i, clean), noise.latents[i : i + 1]
                if encoded is None:
                    samples.append(sample(step, start, range(steps), on_step))
                else:
                    samples.append(self._sampled_upon(encoded, i, step, start, on_step))
        return samples

    def _sampled_upon(self, encoded: _Encoded, picture: int, step: Step, noise: np.ndarray, on_step: OnStep) -> np.ndarray:
        """From what is drawn upon, noised as the first step wants it; with a mask and all steps from noise alone."""
        clean, upon, sigmas = encoded.latents[picture : picture + 1], encoded.upon, self.manifest.sampling.sigmas
        start = noised(clean, noise, np.float32(sigmas[upon.first]))
        if upon.mask is not None:
            step = inpainted(step, sigmas, clean, noise, upon.mask)
            start = start if upon.first else noise
        return sample(step, start, range(upon.first, self._steps), on_step)

    def _preview(self, clean: np.ndarray, noise: PictureNoise, encoded: _Encoded | None, picture: int) -> np.ndarray:
        """What a picture would be of predicted clean latents; where it is drawn upon with a mask, what stays is as it was."""
        full = resized(clean, noise.sizes[-1], self.manifest.sampling.upscale_mode)
        if encoded is not None and (mask := encoded.upon.mask) is not None:
            full = (1 - mask) * encoded.latents[picture : picture + 1] + mask * full
        shown: np.ndarray = self._finite(self._stages.decode(full), "the preview")[0].transpose(1, 2, 0)
        return np.ascontiguousarray(shown)

    def _step(self, condition: _Guided, noise: PictureNoise, picture: int, clean: _Clean) -> Step:
        sampling, stages = self.manifest.sampling, self._stages

        def velocity(latents: np.ndarray, step: int) -> np.ndarray:
            def predicted(side: Side) -> np.ndarray:
                return self._finite(stages.velocity(latents, condition.sides[side], step), f"step {step + 1}")

            found = guided_velocity(condition.guidance, sampling.sigmas, step, predicted)
            clean.latents = latents - np.float32(sampling.sigmas[step]) * found
            return found

        if sampling.method == "euler":
            return euler(velocity, sampling.sigmas)
        if sampling.method == "dpmpp":
            return combined(velocity, sampling.sigmas, sampling.combinations, noise.latents[picture : picture + 1])

        def enlarged(clean: np.ndarray, step: int) -> np.ndarray:
            return resized(clean, noise.size_after(step), sampling.upscale_mode)

        return renoise(velocity, sampling.sigmas, noise.of_steps(picture), enlarged)

    def _decoded(self, samples: Sequence[np.ndarray], report: Progress) -> np.ndarray:
        """Pictures ``[pictures, height, width, 3]``."""
        pictures = []
        with self._sessions.stage():
            for i, sample in enumerate(samples):
                report("decode", i, len(samples))
                pictures.append(self._finite(self._stages.decode(sample), "the picture"))
            report("decode", len(samples), len(samples))
        return np.ascontiguousarray(np.concatenate(pictures).transpose(0, 2, 3, 1))

    def _finite(self, array: np.ndarray, where: str) -> np.ndarray:
        if not np.isfinite(array).all():
            half = self.manifest.compute == "fp16"
            what = "holds NaN or infinite values" + (": fp16 overflowed, most likely" if half else "")
            remedy = "`flash-deploy verify --student` says where; build it again, or with --precision fp32"
            raise BundleError("The bundle computes a result that is not finite.", [Complaint(where, what)], remedy)
        return array


def _silent(stage: str, done: int, total: int) -> None:
    """Whoever wants no progress."""
