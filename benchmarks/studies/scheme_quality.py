"""What each scheme, and each way of finding its codes, does to the built-in student's latents, pictures and scores.

    python -m benchmarks.studies.scheme_quality [--prompts 500]

The transformer's products are stored so, the rest stays as it is; weights alone: no activation is rounded. Rows that name a stock
tool have its own codes (onnxruntime's, NNCF's and coremltools' are called, the latter two where ``flash-deploy[peers]`` is
installed; ggml's formats are their published formula). "Searched" rows mix schemes for the least predicted error at a size.
Calibrated on prompts that are not among those drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.studies.weights.stock import coremltools_tables, largest_value, nncf_weights, onnxruntime_blocks
from benchmarks.studies.weights.trial import TEST_SEED, Trial, calibration_captions, unseen_captions
from benchmarks.studies.weights.ways import INTEGERS, TABLES, Ways, Weights
from distillation.shape_world import accuracy, parse_caption, score
from exporters.streamed.module import Streaming, Substitute
from exporters.streamed.pipeline import Drawn
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT
from quantization.calibration import Key
from quantization.sensitivity import Sensitivity

CALIBRATION_PROMPTS, BATCH = 32, 50


def candidates(weights: Weights, sensitivities: Mapping[Key, Sensitivity]) -> Iterator[tuple[str, int, Weights]]:
    """Each way with its bytes and the weights that it leaves."""
    ways = Ways(weights, sensitivities)
    yield from _eight_bits(ways)
    yield from _four_bits(ways)
    for bits in (4.5, 5.0, 5.75, 8.25):
        yield f"searched integers, at most {bits} bits", *ways.searched(INTEGERS, ways.bytes_of(bits))
    yield from _tables(ways)
    for bits in (4.25, 6.1):
        yield f"searched tables, at most {bits} bits", *ways.searched(TABLES, ways.bytes_of(bits))


def _eight_bits(ways: Ways) -> Iterator[tuple[str, int, Weights]]:
    size, all_of = ways.size, ways.all_of
    yield "int8, data-free", size("int8"), ways.free("int8")
    yield "int8, error feedback", size("int8"), ways.ours("int8")
    yield "ggml q8_0", size("int8g32", 2), all_of(lambda _, w: largest_value(w, 8, 32, False, np.float16))
    yield "int8g128, error feedback", size("int8g128"), ways.ours("int8g128")
    if _has_peers():
        yield "NNCF int8, symmetric", size("int8", 2), all_of(lambda _, w: nncf_weights(w, 8, 0))
    yield "int8g32, data-free", size("int8g32"), ways.free("int8g32")
    yield "int8g32, error feedback", size("int8g32"), ways.ours("int8g32")
    yield "lut6, data-free", size("lut6"), ways.free("lut6")
    yield "lut6, calibrated", size("lut6"), ways.ours("lut6")
    if _has_peers():
        yield "coremltools palettization, 6 bits", size("lut6"), all_of(lambda _, w: coremltools_tables(w, 6))


def _four_bits(ways: Ways) -> Iterator[tuple[str, int, Weights]]:
    size, all_of = ways.size, ways.all_of
    if _has_peers():
        yield "NNCF int4, symmetric, groups of 32", size("int4g32", 2), all_of(lambda _, w: nncf_weights(w, 4, 32))
    yield "int4g32, largest value", size("int4g32"), all_of(lambda _, w: largest_value(w, 4, 32, False, np.float32))
    yield "onnxruntime MatMulNBits 4-bit, block 32", size("int4g32"), all_of(lambda _, w: onnxruntime_blocks(w, 32))
    yield "ggml q4_0", size("int4g32", 2), all_of(lambda _, w: largest_value(w, 4, 32, True, np.float16))
    yield "int4g32, searched scales", size("int4g32"), ways.free("int4g32")
    yield "int4g32, scales weighted by importance", size("int4g32"), ways.weighted("int4g32")
    yield "int4g32, error feedback", size("int4g32"), ways.ours("int4g32")
    yield "uint4g32, error feedback", size("uint4g32"), ways.ours("uint4g32")


def _tables(ways: Ways) -> Iterator[tuple[str, int, Weights]]:
    if _has_peers():
        yield "coremltools palettization, 4 bits", ways.size("lut4"), ways.all_of(lambda _, w: coremltools_tables(w, 4))
    yield "lut4, data-free", ways.size("lut4"), ways.free("lut4")
    yield "lut4, tables weighted by importance", ways.size("lut4"), ways.weighted("lut4")
    yield "lut4, and error feedback", ways.size("lut4"), ways.ours("lut4")
    yield "lut4g16, calibrated", ways.size("lut4g16"), ways.ours("lut4g16")
    yield "lut3g16, calibrated", ways.size("lut3g16"), ways.ours("lut3g16")


def _has_peers() -> bool:
    return find_spec("nncf") is not None


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

    sensitivities = trial.products(calibration_captions(CALIBRATION_PROMPTS))
    weights = {key: trial.student.weights[key[0]][key[1]].load() for key in sensitivities}
    truth = draw(Streaming({}))
    print(f"{count} prompts, seed {TEST_SEED}; {sum(w.size for w in weights.values())} weights; score of the student: ", end="")
    print(f"{_score(truth, prompts)[0]:.3f} ± {_score(truth, prompts)[1]:.3f}\n")
    print(
        "| | bits per weight | latents, dB | pictures, mean PSNR | 5th percentile | score | pictures that pass no more, or now |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, size, stored in candidates(weights, sensitivities):
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
