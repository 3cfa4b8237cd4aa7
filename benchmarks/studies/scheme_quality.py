"""What each scheme, and each way of finding its codes, does to the built-in student's latents, pictures and scores.

    python -m benchmarks.studies.scheme_quality [--prompts 500]

The transformer's products are stored so, the rest stays as it is; weights alone: no activation is rounded. Rows that name a stock
tool have its own codes (onnxruntime's, NNCF's and coremltools' are called, the latter two where ``flash-deploy[peers]`` is
installed; ggml's formats are their published formula). "Searched" rows mix schemes for the least foretold error at so many bytes.
Calibrated on prompts that are not among those drawn.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.studies.stock import coremltools_tables, largest_value, nncf_weights, onnxruntime_blocks
from benchmarks.studies.trial import TEST_SEED, Trial, unseen_captions, weighted_by_importance
from distillation.shape_world import accuracy, parse_caption, score
from exporters.streamed.module import Streaming, Substitute
from exporters.streamed.pipeline import Drawn
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT
from quantization.calibration import Key
from quantization.codecs.codec import roundtrip
from quantization.schemes import parse_scheme
from quantization.search import Limits, Option, choose
from quantization.sensitivity import Sensitivity

CALIBRATION_PROMPTS, BATCH = 32, 50
INTEGERS = ("int4g128", "uint4g128", "int4g64", "uint4g64", "int4g32", "uint4g32", "int8g128", "int8g32", "fp16")
TABLES = ("lut3", "lut4", "lut4g16", "lut6", "lut8", "fp16")

Weights = dict[Key, np.ndarray]


def candidates(weights: Weights, known: Mapping[Key, Sensitivity]) -> Iterator[tuple[str, int, Weights]]:
    """Each way with its bytes and the weights that it leaves."""
    peers = find_spec("nncf") is not None

    def size(scheme: str, scale_bytes: int = 4) -> int:
        return sum(parse_scheme(scheme).size_bytes(w.shape, scale_bytes) for w in weights.values())

    def all_of(make: Callable[[Key, np.ndarray], np.ndarray]) -> Weights:
        return {key: make(key, weight) for key, weight in weights.items()}

    @functools.cache
    def ours(scheme: str) -> Weights:
        return all_of(lambda key, w: roundtrip(w, parse_scheme(scheme), str(key), known[key]))

    def searched(schemes: Sequence[str], bits: float) -> tuple[str, int, Weights]:
        def option(key: Key, scheme: str) -> Option:
            error = known[key].weight_error(weights[key], ours(scheme)[key])
            return Option(parse_scheme(scheme), parse_scheme(scheme).size_bytes(weights[key].shape), error)

        limit = int(bits * sum(w.size for w in weights.values()) / 8)
        chosen = choose([[option(key, scheme) for scheme in schemes] for key in weights], "error", Limits(size_bytes=limit))
        stored = {key: ours(option.scheme.name)[key] for key, option in zip(weights, chosen, strict=True)}
        kind = "tables" if schemes is TABLES else "integers"
        return f"searched {kind}, at most {bits} bits", sum(option.size_bytes for option in chosen), stored

    def free(scheme: str) -> Weights:
        return all_of(lambda key, w: roundtrip(w, parse_scheme(scheme), str(key)))

    def weighted(scheme: str) -> Weights:
        return all_of(lambda key, w: weighted_by_importance(w, parse_scheme(scheme), known[key]))

    yield "int8, data-free", size("int8"), free("int8")
    yield "int8, error feedback", size("int8"), ours("int8")
    yield "ggml q8_0", size("int8g32", 2), all_of(lambda _, w: largest_value(w, 8, 32, False, np.float16))
    yield "int8g128, error feedback", size("int8g128"), ours("int8g128")
    if peers:
        yield "NNCF int8, symmetric", size("int8", 2), all_of(lambda _, w: nncf_weights(w, 8, 0))
    yield "int8g32, data-free", size("int8g32"), free("int8g32")
    yield "int8g32, error feedback", size("int8g32"), ours("int8g32")
    yield "lut6, data-free", size("lut6"), free("lut6")
    yield "lut6, calibrated", size("lut6"), ours("lut6")
    if peers:
        yield "coremltools palettization, 6 bits", size("lut6"), all_of(lambda _, w: coremltools_tables(w, 6))
        yield "NNCF int4, symmetric, groups of 32", size("int4g32", 2), all_of(lambda _, w: nncf_weights(w, 4, 32))
    yield "int4g32, largest value", size("int4g32"), all_of(lambda _, w: largest_value(w, 4, 32, False, np.float32))
    yield "onnxruntime MatMulNBits 4-bit, block 32", size("int4g32"), all_of(lambda _, w: onnxruntime_blocks(w, 32))
    yield "ggml q4_0", size("int4g32", 2), all_of(lambda _, w: largest_value(w, 4, 32, True, np.float16))
    yield "int4g32, searched scales", size("int4g32"), free("int4g32")
    yield "int4g32, scales weighted by importance", size("int4g32"), weighted("int4g32")
    yield "int4g32, error feedback", size("int4g32"), ours("int4g32")
    yield "uint4g32, error feedback", size("uint4g32"), ours("uint4g32")
    yield searched(INTEGERS, 4.5)
    yield searched(INTEGERS, 5.0)
    yield searched(INTEGERS, 5.75)
    yield searched(INTEGERS, 8.25)
    if peers:
        yield "coremltools palettization, 4 bits", size("lut4"), all_of(lambda _, w: coremltools_tables(w, 4))
    yield "lut4, data-free", size("lut4"), free("lut4")
    yield "lut4, tables weighted by importance", size("lut4"), weighted("lut4")
    yield "lut4, and error feedback", size("lut4"), ours("lut4")
    yield "lut4g16, calibrated", size("lut4g16"), ours("lut4g16")
    yield "lut3g16, calibrated", size("lut3g16"), ours("lut3g16")
    yield searched(TABLES, 4.25)
    yield searched(TABLES, 6.1)


def main() -> None:
    """Calibrate, draw with each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    count = parser.parse_args().prompts
    trial = Trial.of(open_student(BUILTIN_STUDENT, without=("text_encoder_3",)), 64)
    prompts = unseen_captions(count)

    def draw(streaming: Streaming) -> Drawn:
        pipeline = trial.pipeline(streaming)
        noise, step_noise = pipeline.noise(count, TEST_SEED)
        parts = [slice(i, i + BATCH) for i in range(0, count, BATCH)]
        with torch.no_grad():
            drawn = [pipeline.draw(prompts[part], noise[part], step_noise[:, part]) for part in parts]
        return Drawn(torch.cat([d.latents for d in drawn]), torch.cat([d.pictures for d in drawn]))

    known = trial.products(CALIBRATION_PROMPTS)
    weights = {key: trial.student.weights[key[0]][key[1]].load() for key in known}
    truth = draw(Streaming({}))
    print(f"{count} prompts, seed {TEST_SEED}; {sum(w.size for w in weights.values())} weights; score of the student: ", end="")
    print(f"{_score(truth, prompts)[0]:.3f} ± {_score(truth, prompts)[1]:.3f}\n")
    print(
        "| | bits per weight | latents, dB | pictures, mean PSNR | 5th percentile | score | pictures that pass no more, or now |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, size, stored in candidates(weights, known):
        drawn = draw(Streaming({key: Substitute(lambda w=w: w.astype(np.float32)) for key, w in stored.items()}))  # type: ignore[misc]
        bits = 8 * size / sum(w.size for w in weights.values())
        print(f"| {name} | {bits:.2f} | {_figures(truth, drawn, prompts)} |", flush=True)


def _figures(truth: Drawn, drawn: Drawn, prompts: list[str]) -> str:
    moved = float((truth.latents - drawn.latents).double().square().sum())
    latents = 10 * np.log10(float(truth.latents.double().square().sum()) / moved)
    psnr = -10 * np.log10((truth.pictures - drawn.pictures).double().square().mean(dim=(1, 2, 3)).numpy())
    before, after = (np.array(_passes(d, prompts)) for d in (truth, drawn))
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return f"{latents:.1f} | {psnr.mean():.1f} | {np.percentile(psnr, 5):.1f} | {after.mean():.3f} | {lost}, {won}"


def _passes(drawn: Drawn, prompts: list[str]) -> list[bool]:
    pictures = drawn.pictures.permute(0, 2, 3, 1).numpy()
    return [score(picture, parse_caption(prompt)).right for picture, prompt in zip(pictures, prompts, strict=True)]


def _score(drawn: Drawn, prompts: list[str]) -> tuple[float, float]:
    pictures = drawn.pictures.permute(0, 2, 3, 1).numpy()
    return accuracy([score(picture, parse_caption(prompt)) for picture, prompt in zip(pictures, prompts, strict=True)])


if __name__ == "__main__":
    main()
