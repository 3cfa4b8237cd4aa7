"""Text to picture from a bundle: numpy, onnxruntime and tokenizers, no torch.

Graphs are loaded one after another (text, conditioner, denoiser, VAE) and freed each, so that the peak is the largest
graph, not their sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from deploy.bundle.folder import Bundle, open_bundle
from deploy.bundle.manifest import PictureRecord
from deploy.errors import BundleError, Complaint, InputError
from deploy.runtime.sampler import OnStep, sample_euler, sample_renoise
from deploy.runtime.sessions import Run, Sessions, fastest_runtime
from deploy.runtime.tokenizer import encode, load_tokenizer, tokens_cut
from deploy.runtime.torch_noise import LARGEST_SEED, TorchGenerator
from exporters.choices import ENCODER_IDS, Runtime
from exporters.layouts.swift_client import text_states, transformer_inputs

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many parts are done and how many there are."""
Noise = Literal["numpy", "torch"]


class _Generator(Protocol):
    """What draws one picture's noise: numpy's generator, or torch's played in numpy."""

    def standard_normal(self, shape: tuple[int, ...], dtype: type[np.float32], /) -> np.ndarray: ...


class Pipeline:
    """A bundle that can be asked for pictures.

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
        layouts: dict[str, type[_Native | _Optimum | _Swift]] = {"native": _Native, "optimum": _Optimum, "swift": _Swift}
        self._stages = layouts[self.manifest.layout](self)
        self._tokenizers = {t.input: load_tokenizer(self.bundle.folder, t) for t in self.manifest.text.tokenizers}

    def generate(
        self,
        prompt: str,
        seed: int = 0,
        num_images: int = 1,
        latents: np.ndarray | None = None,
        height: int | None = None,
        width: int | None = None,
        step_noise: np.ndarray | None = None,
        progress: Progress | None = None,
        noise: Noise = "numpy",
    ) -> np.ndarray:
        """Draw pictures of one prompt.

        Args:
            prompt: what to draw.
            seed: of the initial noise; picture i of a seed is the same whatever ``num_images`` is.
            num_images: how many pictures.
            latents: initial noise ``[num_images, channels, height / 8, width / 8]`` in place of the seed's.
            height: picture height in pixels, of a bundle with a dynamic size.
            width: picture width in pixels, of a bundle with a dynamic size.
            step_noise: what a re-noising sampler adds, ``[num_images, steps, channels, height / 8, width / 8]``, in place of
                the seed's.
            progress: told of every stage and step.
            noise: whose noise a seed means: ``numpy``'s (picture i has its own stream of the seed), or what ``torch``'s CPU
                generator draws in fp32, as diffusers does it: picture i has the seed + i, and a re-noising sampler goes on with
                its picture's generator.

        Returns:
            ``[num_images, height, width, 3]``, fp32 in [0, 1].

        Raises:
            InputError: the size, the seed or the latents do not fit, or a result is not finite.
        """
        count = num_images if latents is None else len(latents)
        generators = _generators(seed, count, noise)
        latents = self._initial(generators, latents, *self._size(height, width))
        report = progress or (lambda stage, done, total: None)
        steps = len(self.manifest.sampling.timesteps)
        report("text", 0, 1)
        with self._sessions.stage():
            condition = self._stages.condition(self.tokenize(prompt))
        sampled = []
        with self._sessions.stage():
            for i, generator in enumerate(generators):
                report("denoise", i * steps, count * steps)
                start = latents[i : i + 1]
                added = _step_noise(generator, start.shape, None if step_noise is None else step_noise[i])
                on_step = functools.partial(_report_step, report, i * steps, count * steps)
                sampled.append(self._sample(condition, start, added, on_step))
        with self._sessions.stage():
            pictures = []
            for i, sample in enumerate(sampled):
                report("decode", i, count)
                pictures.append(self._finite(self._stages.decode(sample), "the picture"))
            report("decode", count, count)
        return np.ascontiguousarray(np.concatenate(pictures).transpose(0, 2, 3, 1))

    def tokenize(self, prompt: str) -> dict[str, np.ndarray]:
        """Token ids by graph input, each ``[1, length]``.

        Raises:
            InputError: the prompt is not text that UTF-8 can hold.
        """
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            complaint = Complaint("PROMPT", f"is not UTF-8: {error.reason}, at character {error.start}")
            raise InputError("The prompt cannot be read.", [complaint], "give it in UTF-8") from None
        return {name: encode(tokenizer, prompt) for name, tokenizer in self._tokenizers.items()}

    def tokens_cut(self, prompt: str) -> dict[str, int]:
        """How many tokens of the prompt each encoder does not see, where there are any."""
        self.tokenize(prompt)  # complains of what is no text
        return {name: cut for name, tokenizer in self._tokenizers.items() if (cut := tokens_cut(tokenizer, prompt))}

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run one graph of the bundle."""
        return self._sessions.run(graph, inputs)

    def load(self, graph: str) -> Run:
        """Load one graph of the bundle, to be run by the caller again and again."""
        return self._sessions.load(graph)

    def _sample(self, condition: Any, start: np.ndarray, noise: Callable[[int], np.ndarray], on_step: OnStep) -> np.ndarray:
        sampling = self.manifest.sampling
        if sampling.method == "euler":
            return sample_euler(self._velocity(condition), start, sampling.sigmas, on_step)
        return sample_renoise(self._velocity(condition), start, sampling.sigmas, noise, on_step)

    def _velocity(self, condition: Any) -> Callable[[np.ndarray, int], np.ndarray]:
        def velocity(latents: np.ndarray, step: int) -> np.ndarray:
            return self._finite(self._stages.velocity(latents, condition, step), f"step {step + 1}")

        return velocity

    def _finite(self, array: np.ndarray, where: str) -> np.ndarray:
        if not np.isfinite(array).all():
            half = self.manifest.compute == "fp16"
            what = "holds NaN or infinite values" + (": fp16 overflowed, most likely" if half else "")
            remedy = "`flash-deploy verify --student` says where; build it again, or with --precision fp32"
            raise BundleError("The bundle computes a result that is not finite.", [Complaint(where, what)], remedy)
        return array

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        picture = self.manifest.picture
        wanted = {"height": height or picture.height, "width": width or picture.width}
        if not picture.dynamic:
            complaints = [
                Complaint(f"--{name}", "this bundle has a fixed size", f"{getattr(picture, name)} pixels", str(size))
                for name, size in wanted.items()
                if size != getattr(picture, name)
            ]
            other = (
                "a bundle of that size" if self.manifest.model_format == "coreml" else "a bundle of that size, or with --dynamic"
            )
            remedy = f"leave {' and '.join(c.where for c in complaints)} out, or build {other}"
        else:
            complaints = [
                Complaint(f"--{name}", "wrong size", _sizes_expected(size, picture), str(size))
                for name, size in wanted.items()
                if not 0 < size <= picture.largest or size % picture.multiple_of
            ]
            remedy = "take a size that fits"
        if complaints:
            raise InputError("The picture's size does not fit the bundle.", complaints, remedy)
        return wanted["height"], wanted["width"]

    def _initial(self, noises: Sequence[_Generator], latents: np.ndarray | None, height: int, width: int) -> np.ndarray:
        picture = self.manifest.picture
        shape = (picture.latent_channels, height // picture.pixels_per_latent, width // picture.pixels_per_latent)
        if latents is None:
            return np.stack([rng.standard_normal(shape, np.float32) for rng in noises])
        if latents.ndim != 4 or latents.shape[1:] != shape or not len(latents):
            expected = f"[images, {', '.join(map(str, shape))}]"
            complaint = Complaint("--latents", "wrong shape", expected, str(list(latents.shape)))
            raise InputError("The latents do not fit the bundle.", [complaint])
        if latents.dtype.kind != "f" or not np.isfinite(latents).all():
            raise InputError(
                "The latents cannot be used.",
                [Complaint("--latents", "NaN, infinite or not numbers", "finite floats", str(latents.dtype))],
            )
        with np.errstate(over="ignore"):
            narrow = latents.astype(np.float32)
        if not np.isfinite(narrow).all():
            largest = float(np.finfo(np.float32).max)
            complaint = Complaint("--latents", "too large for fp32", f"at most {largest:.3g}", f"{np.abs(latents).max():.3g}")
            raise InputError("The latents cannot be used.", [complaint])
        return narrow


class _Native:
    """One text graph, a conditioner, a denoiser, a VAE decoder that ends in RGB."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def condition(self, ids: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        states, pooled = self.pipeline.run("text_encoder", ids)
        return states, self.pipeline.run("conditioner", {"pooled_projections": pooled})[0]

    def velocity(self, latents: np.ndarray, condition: tuple[np.ndarray, np.ndarray], step: int) -> np.ndarray:
        states, modulations = condition
        inputs = {"hidden_states": latents, "encoder_hidden_states": states, "modulation": modulations[step]}
        return self.pipeline.run("denoiser", inputs)[0]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self.pipeline.run("vae_decoder", {"latent_sample": latents})[0]


class _Optimum:
    """Diffusers' components as they are; this side does what ``StableDiffusion3Pipeline`` does between them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def condition(self, ids: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        text = self.pipeline.manifest.text
        states, pooled = [], []
        for name, graph in (("input_ids", "text_encoder"), ("input_ids_2", "text_encoder_2")):
            out = self.pipeline.run(graph, {"input_ids": ids[name]})
            pooled.append(out[0])
            states.append(out[-2])  # hidden_states[-2], the state before the last layer
        clip = np.concatenate(states, axis=-1)
        clip = np.pad(clip, ((0, 0), (0, 0), (0, text.joint_dim - clip.shape[-1])))
        if text.t5 == "kept":
            t5 = self.pipeline.run("text_encoder_3", {"input_ids": ids["input_ids_3"]})[0]
        else:
            t5 = np.zeros((1, text.max_sequence_length, text.joint_dim), np.float32)
        return np.concatenate([clip, t5], axis=1), np.concatenate(pooled, axis=-1)

    def velocity(self, latents: np.ndarray, condition: tuple[np.ndarray, np.ndarray], step: int) -> np.ndarray:
        states, pooled = condition
        timestep = np.asarray([self.pipeline.manifest.sampling.timesteps[step]], np.float32)
        inputs = {
            "hidden_states": latents,
            "encoder_hidden_states": states,
            "pooled_projections": pooled,
            "timestep": timestep,
        }
        return self.pipeline.run("transformer", inputs)[0]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        picture = self.pipeline.manifest.picture
        scaled = latents / np.float32(picture.scaling_factor) + np.float32(picture.shift_factor)
        return np.clip(self.pipeline.run("vae_decoder", {"latent_sample": scaled})[0] / 2 + 0.5, 0, 1)


class _Swift:
    """What Apple's Swift client does between its programs, but by the bundle's own schedule."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def condition(self, ids: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        text = self.pipeline.manifest.text
        numbers = {name: array.astype(np.float32) for name, array in ids.items()}
        clips = [
            self.pipeline.run(graph, {"input_ids": numbers[ENCODER_IDS[graph]]}) for graph in ("text_encoder", "text_encoder_2")
        ]
        t5 = None
        if text.t5 == "kept":
            tokens = numbers["input_ids_3"]
            [t5] = self.pipeline.run("text_encoder_3", {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
        states = text_states([hidden for hidden, _ in clips], t5, text.joint_dim)
        return states, np.concatenate([pooled for _, pooled in clips], axis=-1)

    def velocity(self, latents: np.ndarray, condition: tuple[np.ndarray, np.ndarray], step: int) -> np.ndarray:
        timestep = self.pipeline.manifest.sampling.timesteps[step]
        return self.pipeline.run("transformer", transformer_inputs(latents, timestep, *condition))[0][:1]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        picture = self.pipeline.manifest.picture
        z = latents / np.float32(picture.scaling_factor) + np.float32(picture.shift_factor)
        return np.clip(self.pipeline.run("vae_decoder", {"z": z})[0] / 2 + 0.5, 0, 1)


def _sizes_expected(size: int, picture: PictureRecord) -> str:
    """What a side of a dynamic size can be, and the sizes nearest to one that it cannot be."""
    step, most = picture.multiple_of, picture.largest // picture.multiple_of * picture.multiple_of
    below, above = size // step * step, -(-size // step) * step
    nearest = dict.fromkeys(min(max(near, step), most) for near in (below, above))
    return f"a multiple of {step} from {step} to {most}, for example {' or '.join(map(str, nearest))}"


def _generators(seed: int, count: int, noise: Noise) -> Sequence[_Generator]:
    """One for each picture."""
    if noise == "numpy":
        return [np.random.default_rng([seed, i]) for i in range(count)]
    if not 0 <= seed <= LARGEST_SEED + 1 - count:
        complaint = Complaint("--seed", "torch has no such seed", f"0 to {LARGEST_SEED + 1 - count}", str(seed))
        raise InputError("The noise cannot be drawn.", [complaint])
    return [TorchGenerator(seed + i) for i in range(count)]


def _report_step(report: Progress, before: int, total: int, step: int, _: np.ndarray) -> None:
    report("denoise", before + step + 1, total)


def _step_noise(generator: _Generator, shape: tuple[int, ...], given: np.ndarray | None) -> Callable[[int], np.ndarray]:
    """The noise of each step: given, or drawn after the initial latents from the picture's own generator."""
    if given is not None:
        return lambda step: given[step].reshape(shape).astype(np.float32)
    return lambda step: generator.standard_normal(shape, np.float32)
