"""What each way of finding a scheme's codes buys: the error of the denoiser's output, one technique added at a time.

    python -m benchmarks.studies.ablation [STUDENT] [--prompts 100] [--calibration-prompts 32] [--weights GLOB] [--scheme S]

The transformer's products are stored so, the rest stays as it is; but for ``int8g128`` and ``w8a8``, weights alone: no input is
rounded. The denoiser is given what it meets when the student itself draws, at every step, and decibels are of all predicted
velocities together. (In final latents, a few pictures that turn out otherwise decide about a decibel.) A gain is over the row
above; strengths of equalisation are alternatives, each over the row before the first.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.studies.weights.trial import Trial, calibration_captions, unseen_captions
from benchmarks.studies.weights.ways import rounded_to_nearest, weighted_by_importance
from exporters.reference.decibels import snr_db
from exporters.restructure.denoiser import reads_modulated
from exporters.streamed.module import Streaming, Substitute, input_rounding
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT
from quantization.calibration import Key
from quantization.codecs.codec import roundtrip
from quantization.equalisation import input_factors, pays
from quantization.schemes import Scheme, parse_scheme
from quantization.sensitivity import Sensitivity

STRENGTHS, EQUALISED = (0.25, 0.5, 0.75, 1.0), "and equalisation, strength"

Technique = Callable[[Key, np.ndarray, Sensitivity], Substitute]


class _Measured:
    """The student's denoiser on what it meets, to be repeated with other weights."""

    def __init__(self, trial: Trial, prompts: int) -> None:
        self._trial, pipeline = trial, trial.pipeline()
        noise, step_noise = pipeline.noise(prompts, 0)
        self._met: list[tuple[Tensor, Tensor, list[Tensor]]] = []  # text states, pooled text, latents of each step
        velocities = []
        for k, caption in enumerate(unseen_captions(prompts)):
            latents, states, pooled = noise[k : k + 1], *pipeline.encode(caption)
            condition, met = (states, pipeline.modulations(pooled)[:, None]), []
            for i in range(len(trial.sampling.timesteps)):
                met.append(latents)
                velocities.append(pipeline.velocity(i, latents, condition))
                latents = pipeline.step(i, latents, velocities[-1], step_noise[:, k : k + 1])
            self._met.append((states, pooled, met))
        self._truth = torch.cat(velocities).numpy()

    def decibels(self, substitutes: dict[Key, Substitute]) -> float:
        """With other weights."""
        pipeline, velocities = self._trial.pipeline(Streaming(substitutes)), []
        for states, pooled, met in self._met:
            condition = states, pipeline.modulations(pooled)[:, None]
            velocities += [pipeline.velocity(i, latents, condition) for i, latents in enumerate(met)]
        return snr_db(self._truth, torch.cat(velocities).numpy())


def techniques() -> Iterator[tuple[str, str, Technique]]:
    """Each scheme with its techniques, from the plainest on."""
    for name in ("int4g32", "int8", "lut4", "lut6"):
        scheme = parse_scheme(name)
        table = scheme.kind == "lookup"
        yield name, "even steps" if table else "largest value on the last code", _stored(_plain, scheme)
        yield name, "optimal tables" if table else "searched scales", _stored(_free, scheme)
        yield name, f"{'tables' if table else 'scales'} weighted by importance", _stored(weighted_by_importance, scheme)
        yield name, "error feedback", _stored(_calibrated, scheme)
    for name in ("int8g128", "w8a8"):
        scheme = parse_scheme(name)
        yield name, "largest value on the last code", _stored(_plain, scheme)
        yield name, "searched scales", _stored(_free, scheme)
        yield name, "error feedback", _stored(_calibrated, scheme)
        for strength in STRENGTHS:
            yield name, f"{EQUALISED} {strength}", functools.partial(_equalised, scheme, strength)


def _stored(codes: Callable[[np.ndarray, Scheme, Sensitivity], np.ndarray], scheme: Scheme) -> Technique:
    def substitute(key: Key, weight: np.ndarray, sensitivity: Sensitivity) -> Substitute:
        stored = codes(weight, scheme, sensitivity)
        return Substitute(lambda: stored, input_rounding(scheme) if pays(scheme) else None)

    return substitute


def _plain(weight: np.ndarray, scheme: Scheme, sensitivity: Sensitivity) -> np.ndarray:
    return rounded_to_nearest(weight, scheme)


def _free(weight: np.ndarray, scheme: Scheme, sensitivity: Sensitivity) -> np.ndarray:
    return roundtrip(weight, scheme, "weight")


def _calibrated(weight: np.ndarray, scheme: Scheme, sensitivity: Sensitivity) -> np.ndarray:
    return roundtrip(weight, scheme, "weight", sensitivity)


def _equalised(scheme: Scheme, strength: float, key: Key, weight: np.ndarray, sensitivity: Sensitivity) -> Substitute:
    factors = input_factors(sensitivity.gram, strength) if reads_modulated(key[1]) and sensitivity.gram is not None else None
    stored = roundtrip(weight, scheme, "weight", sensitivity, factors)
    return Substitute(lambda: stored, input_rounding(scheme, factors))


@torch.no_grad()
def main() -> None:
    """Calibrate, measure each and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path, nargs="?", default=BUILTIN_STUDENT)
    parser.add_argument("--prompts", type=int, default=100, help="captions whose denoising steps are measured")
    parser.add_argument("--calibration-prompts", type=int, default=32, help="other captions, to calibrate on")
    parser.add_argument("--pixels", type=int, default=64, help="side of the picture")
    parser.add_argument("--weights", default="*", help="round only products whose names match this pattern")
    parser.add_argument("--scheme", action="append", help="this scheme (repeatable); all by default")
    options = parser.parse_args()
    trial = Trial.of(open_student(options.student, without=("text_encoder_3",)), options.pixels)
    with torch.enable_grad():
        sensitivities = trial.products(
            calibration_captions(options.calibration_prompts), lambda name: fnmatch(name, options.weights)
        )
    weights = {key: trial.student.weights[key[0]][key[1]].load() for key in sensitivities}
    measured = _Measured(trial, options.prompts)
    print(f"{len(weights)} products, {sum(w.size for w in weights.values())} weights; {options.prompts} prompts\n")
    print("| scheme | codes | dB | gain |\n|---|---|---|---|")
    above = ("", 0.0)
    for scheme, name, technique in techniques():
        if options.scheme and scheme not in options.scheme:
            continue
        db = measured.decibels({key: technique(key, weights[key], sensitivities[key]) for key in sensitivities})
        gain = f"{db - above[1]:+.1f}" if above[0] == scheme else ""
        print(f"| {scheme} | {name} | {db:.1f} | {gain} |", flush=True)
        if not name.startswith(EQUALISED):
            above = scheme, db


if __name__ == "__main__":
    main()
