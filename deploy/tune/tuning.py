"""Choose a profile: measure how sensitive each weight is, search, then draw with what was found.

1. Calibrate (:mod:`exporters.streamed.calibrate`): what an error of each weight does to the picture.
2. Encode every weight in every scheme that the tier can run, and predict each one's error.
3. Draw with every uniform scheme; what they show corrects the forecasts, scheme by scheme.
4. For a row of sizes, find the choice of least predicted error (:mod:`quantization.search`), and draw with it.
5. Of what keeps to the limits, take the choice that drew best.

Each finding is written to the working folder at once: the same command goes on where it was stopped.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from deploy.build.format import unsupported
from deploy.build.plan import settle
from deploy.build.request import BuildRequest
from deploy.errors import Complaint, InputError
from deploy.forecast.products import ProductTimes
from deploy.tiers.schema import Tier
from deploy.tiers.tier import legal_schemes
from deploy.tune.calibrate import default_prompts, open_calibration
from deploy.tune.compare import DrawnErrors, compare
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import GraphOptions
from exporters.restructure.denoiser import reads_modulated
from exporters.streamed.calibrate import CalibrationPlan, calibrate
from exporters.streamed.module import Streaming, Substitute, input_rounding
from exporters.streamed.pipeline import Drawn, TorchPipeline
from exporters.student.student import Student
from quantization.calibration import FILE, Calibration, Key
from quantization.codecs.codec import roundtrip
from quantization.equalisation import input_factors, pays
from quantization.files import append_to, write_array, write_arrays, writing
from quantization.folders import claim_folder, new_folder
from quantization.schemes import Scheme, parse_scheme
from quantization.search import Option

BASE, FLOAT = parse_scheme("fp16"), parse_scheme("fp32")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class TuneRequest:
    """What to tune; the limits are on sums over the whole bundle.

    Attributes:
        build: the student, the tier and what shapes the graphs; its output is the profile's file.
        max_bytes: of all weights.
        min_db: PSNR that pictures must reach against the student's, on average of squares.
        max_time: time of all products over their time in floating point, both predicted
            (:class:`deploy.forecast.products.ProductTimes`).
        prompts: drawn in the calibration and, others of them, to measure.
        count: how many of them for each.
        calibration: a folder that ``flash-deploy calibrate`` made, in place of an own calibration.
        seed: of noise and projections.
        work: folder for what is found on the way.
    """

    build: BuildRequest
    work: Path
    max_bytes: int | None = None
    min_db: float | None = None
    max_time: float | None = None
    prompts: tuple[str, ...] = ()
    count: int = 16
    calibration: Path | None = None
    seed: int = 0


class Tuning:
    """One search, with everything that it has measured so far.

    Args:
        request: what to tune.
        tell: told of every stage.
        note: told what the user should know of the student and its schedule.
    """

    def __init__(self, request: TuneRequest, tell: Tell | None = None, note: Tell | None = None) -> None:
        self.request, self.tell = request, tell or (lambda text: None)
        settled = settle(request.build)
        if note is not None:
            for text in settled.notes:
                note(text)
        self.student: Student = settled.student
        self.tier: Tier = settled.tier
        self.rounds_inputs = request.build.format == "onnx"  # Core ML multiplies with the decoded weights
        self.schemes = legal_schemes(settled.tier, request.build.format, request.build.compute_units, request.build.system)
        self.options: GraphOptions = settled.options
        self.sampling: Sampling = settled.sampling
        prompts = request.prompts or default_prompts(settled.student.path)
        if len(prompts) < 2:
            raise InputError(
                "Too few prompts.", [Complaint("--prompts", "one part calibrates, another measures", "2 at least", "1")]
            )
        count = min(request.count, len(prompts) // 2)
        self.calibration_prompts, self.test_prompts = prompts[:count], prompts[count : 2 * count]
        claim_folder(request.work)
        self.calibration = self._calibrate()
        self.keys = self.calibration.weights()

    def _calibrate(self) -> Calibration:
        if self.request.calibration is not None:
            return open_calibration(self.request.calibration, self.student)
        recipe = [self.student.fingerprint(), self.calibration_prompts, self.request.seed, str(self.options), *self._guidance()]
        folder = self.request.work / f"calibration-{_digest(recipe)}"
        if not (folder / FILE).is_file():
            total = len(self.calibration_prompts)
            with new_folder(folder, replace=True) as draft:
                calibrate(
                    self.student,
                    self.options,
                    self.sampling,
                    CalibrationPlan(self.calibration_prompts, self.request.seed),
                    draft,
                    on_prompt=lambda done: self.tell(f"calibrating, prompt {done} of {total}"),
                )
        return Calibration(folder)

    def weight(self, key: Key) -> np.ndarray:
        """A weight as the student stores it."""
        return self.student.weights[key[0]][key[1]].load()

    def legal(self, key: Key) -> list[Scheme]:
        """How the tier can store a weight."""
        layer, shape = self.calibration.entry(*key).layer, self._shape(key)
        schemes = [parse_scheme(name) for name in self.schemes]
        form = self.request.build.format
        fit = [scheme for scheme in schemes if not unsupported(form, layer, shape, scheme, self.tier, self.request.build.system)]
        # Away from products, w8a8 means int8: its activations are not rounded.
        return [scheme for scheme in fit if layer == "linear" or not scheme.dynamic_activations]

    def estimate(self) -> dict[Key, list[Option]]:
        """Every weight's options, their errors estimated; kept in a file, weight by weight."""
        file = self.request.work / f"errors-{self._digest()}.jsonl"
        errors = _read_lines(file)
        for i, key in enumerate(self.keys):
            self.tell(f"encoding, weight {i + 1} of {len(self.keys)}")
            missing = [scheme for scheme in self.legal(key) if _named(key, scheme) not in errors]
            if missing:
                weight = self.weight(key)
                for scheme in missing:
                    errors[_named(key, scheme)] = self._error(key, scheme, weight)
                    _add_line(file, _named(key, scheme), errors[_named(key, scheme)])
        return {key: [self._option(key, scheme, errors[_named(key, scheme)]) for scheme in self.legal(key)] for key in self.keys}

    def _error(self, key: Key, scheme: Scheme, weight: np.ndarray) -> float:
        """Mean square error of the pictures, estimated, where a weight is stored in a scheme."""
        sensitivity = self.calibration.sensitivity(*key)
        assert sensitivity is not None
        error = sensitivity.weight_error(weight, roundtrip(weight, scheme, f"{key[0]}: {key[1]}", sensitivity))
        return error + (sensitivity.rounding_error(scheme) if self.rounds_inputs else 0.0)

    def _option(self, key: Key, scheme: Scheme, error: float) -> Option:
        return Option(scheme, scheme.size_bytes(self._shape(key)), error, self._seconds(key, scheme) / self.float_seconds)

    @functools.cached_property
    def float_seconds(self) -> float:
        """All products of one picture in the tier's floating point, predicted."""
        return sum(self._seconds(key, FLOAT) for key in self.keys)

    @functools.cached_property
    def _times(self) -> ProductTimes:
        return ProductTimes(self.request.build.tier, self.request.build.format, self.request.build.compute_units)

    def _seconds(self, key: Key, scheme: Scheme) -> float:
        """A weight's products in one picture, predicted."""
        entry = self.calibration.entry(*key)
        return self._times.seconds(entry.layer, scheme, float(entry.inputs), self._shape(key))

    def _shape(self, key: Key) -> tuple[int, ...]:
        return self.student.weights[key[0]][key[1]].shape

    def measure(self, choice: Mapping[Key, Scheme]) -> DrawnErrors:
        """Draw the test prompts with a choice; kept in a file."""
        # Files called measured-* are older: there fp32 stood for itself in fp16.
        file = self.request.work / f"drawn-{self._digest()}.jsonl"
        name = _digest(sorted(("/".join(key), scheme.name) for key, scheme in choice.items()))
        results = _read_lines(file)
        if name not in results:
            factors = self._factors(choice)
            rounded = {key: scheme for key, scheme in choice.items() if not self._keeps(key, scheme)}
            drawn = self._draw(Streaming({key: self._substitute(key, rounded[key], factors.get(key)) for key in rounded}))
            results[name] = msgspec.to_builtins(compare(self._reference(), drawn))
            _add_line(file, name, results[name])
        return msgspec.convert(results[name], DrawnErrors)

    def _keeps(self, key: Key, scheme: Scheme) -> bool:
        """Whether a scheme stores the student's own numbers: nothing stands in their place then."""
        return scheme == FLOAT or (scheme == BASE and self.student.weights[key[0]][key[1]].dtype == np.float16)

    def _factors(self, choice: Mapping[Key, Scheme]) -> dict[Key, np.ndarray]:
        """What a bundle divides inputs by: those that a modulated norm makes, where all products that read them round them."""
        if not self.rounds_inputs:
            return {}
        groups: dict[int | None, list[Key]] = {}
        for key in self.keys:
            if key[0] == "transformer" and reads_modulated(key[1]):
                groups.setdefault(self.calibration.input_number(*key), []).append(key)
        factors: dict[Key, np.ndarray] = {}
        for keys in groups.values():
            if all(pays(choice[key]) for key in keys):
                sensitivity = self.calibration.sensitivity(*keys[0])
                assert sensitivity is not None
                assert sensitivity.gram is not None  # every linear layer has one
                factors |= dict.fromkeys(keys, input_factors(sensitivity.gram))
        return factors

    def _substitute(self, key: Key, scheme: Scheme, factors: np.ndarray | None) -> Substitute:
        """What stands for a weight; stored once, for every picture reads it."""
        file = self.request.work / "stored" / f"{_digest([self._digest(), key, scheme.name, factors is not None])}.npy"
        if not file.is_file():
            claim_folder(file.parent)
            stored = roundtrip(self.weight(key), scheme, f"{key[0]}: {key[1]}", self.calibration.sensitivity(*key), factors)
            write_array(file, stored)
        rounding = input_rounding(scheme, factors) if self.rounds_inputs else None
        return Substitute(lambda: np.array(np.load(file, mmap_mode="r")), rounding)

    def _reference(self) -> Drawn:
        file = self.request.work / f"reference-{self._digest()}.npz"
        if not file.is_file():
            drawn = self._draw(Streaming({}))
            write_arrays(file, {"latents": drawn.latents.numpy(), "pictures": drawn.pictures.numpy()})
        with np.load(file, allow_pickle=False) as arrays:
            return Drawn(torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["pictures"]))

    def _draw(self, streaming: Streaming) -> Drawn:
        pipeline = TorchPipeline(self.student, self.options, self.sampling, streaming)
        noise, step_noise = pipeline.noise(len(self.test_prompts), self.request.seed + 1)
        with torch.no_grad():
            drawn = [
                pipeline.draw([prompt], noise[i : i + 1], step_noise[:, i : i + 1]) for i, prompt in enumerate(self.test_prompts)
            ]
        return Drawn(torch.cat([d.latents for d in drawn]), torch.cat([d.pictures for d in drawn]))

    def _digest(self) -> str:
        """A digest of all that findings depend on."""
        recipe = msgspec.to_builtins(self.calibration.recipe)
        told = [recipe, self.test_prompts, self.request.seed, str(self.options), self.rounds_inputs]
        return _digest([*told, *self._guidance()])

    def _guidance(self) -> list[str]:
        return [str(self.sampling.guidance)] if self.sampling.guidance.on else []


def _named(key: Key, scheme: Scheme) -> str:
    return "/".join((*key, scheme.name))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def _add_line(file: Path, name: str, value: Any) -> None:
    with writing(file), append_to(file) as out:
        out.write(json.dumps([name, value]) + "\n")


def _read_lines(file: Path) -> dict[str, Any]:
    """What was found before; a line that was cut short is not there."""
    by_name: dict[str, Any] = {}
    if file.is_file():
        for line in file.read_text("utf-8").splitlines():
            try:
                name, value = json.loads(line)
            except ValueError:
                continue
            by_name[name] = value
    return by_name
