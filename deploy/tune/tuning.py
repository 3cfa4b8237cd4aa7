"""Choose a profile: measure how sensitive each weight is, search, then draw with what was found.

1. Calibrate (:mod:`exporters.streamed.calibrate`): what an error of each weight does to the picture.
2. Encode every weight in every scheme that the tier can run, and foretell each one's error.
3. Draw with every uniform scheme; what they show corrects the forecasts, scheme by scheme.
4. For a row of sizes, find the choice of least foretold error (:mod:`quantization.search`), and draw with it.
5. Of what keeps to the limits, take the choice that drew best.

Each finding is written to the working folder at once: the same command goes on where it was stopped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from deploy.build.format import unsupported
from deploy.build.request import BuildRequest
from deploy.build.run import plan
from deploy.errors import Complaint, InputError
from deploy.forecast.predict import ProductTimes
from deploy.tiers.tier import Tier, legal_schemes
from deploy.tune.calibrate import default_prompts, open_calibration
from exporters.layouts.sampling import Sampling
from exporters.layouts.spec import GraphOptions
from exporters.restructure.denoiser import reads_modulated
from exporters.streamed.calibrate import calibrate
from exporters.streamed.module import Streaming, Substitute, input_rounding
from exporters.streamed.pipeline import Drawn, TorchPipeline
from exporters.student.student import Student
from quantization.calibration import FILE, Calibration, Key
from quantization.codecs.codec import roundtrip
from quantization.equalisation import input_factors, pays
from quantization.files import append_to, check_writable, write_array, write_arrays, write_text, writing
from quantization.folders import claim_folder, new_folder, remove_tree
from quantization.profile import Profile, profile_toml
from quantization.rules import as_profile
from quantization.schemes import Scheme, parse_scheme
from quantization.search import Limits, Option, choose

DEFAULT_MIN_DB = 40.0  # differences that are not seen side by side
SIZES = 10  # points of the Pareto front
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
            (:class:`deploy.forecast.predict.ProductTimes`).
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


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What pictures drawn with a choice are like, against the student's own.

    Attributes:
        mean_square: error of the pictures, in [0, 1] squared.
        psnr_db: mean over the pictures.
        psnr_p5_db: of the worst of twenty.
        latent_db: signal-to-noise ratio of the latents.
    """

    mean_square: float
    psnr_db: float
    psnr_p5_db: float
    latent_db: float


@dataclass(frozen=True)
class Point:
    """One choice: how large, how good as foretold, how good as drawn."""

    name: str
    choice: Mapping[Key, Scheme]
    size_bytes: int
    time: float
    foretold_db: float
    measured: Measured | None = None


@dataclass(frozen=True)
class Tuned:
    """The outcome: the chosen profile, its point, all points, and the options of every weight.

    ``float_seconds`` is what all products of one picture take in floating point on the tier, foretold; points and options say
    their time as a share of it.
    """

    profile: Profile
    chosen: Point
    points: tuple[Point, ...]
    options: Mapping[Key, Sequence[Option]]
    float_seconds: float


class Tuning:
    """One search, with everything that it has measured so far.

    Args:
        request: what to tune.
        tell: told of every stage.
        note: told what the user should know of the student and its schedule.
    """

    def __init__(self, request: TuneRequest, tell: Tell | None = None, note: Tell | None = None) -> None:
        self.request, self.tell = request, tell or (lambda text: None)
        made = plan(replace(request.build, output=request.work / "never"))
        if note is not None:
            for text in made.notes:
                note(text)
        self.student: Student = made.student
        self.tier: Tier = made.tier
        self.rounds_inputs = request.build.format == "onnx"  # Core ML multiplies with the decoded weights
        self.schemes = legal_schemes(made.tier, request.build.format, request.build.compute_units, request.build.target)
        self.options: GraphOptions = made.options
        self.sampling: Sampling = made.sampling
        prompts = request.prompts or default_prompts(made.student.path)
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
        recipe = [self.student.fingerprint(), self.calibration_prompts, self.request.seed, str(self.options)]
        folder = self.request.work / f"calibration-{_digest(recipe)}"
        if not (folder / FILE).is_file():
            total = len(self.calibration_prompts)
            with new_folder(folder, replace=True) as draft:
                calibrate(
                    self.student,
                    self.options,
                    self.sampling,
                    self.calibration_prompts,
                    draft,
                    seed=self.request.seed,
                    on_prompt=lambda done: self.tell(f"calibrating, prompt {done} of {total}"),
                )
        return Calibration(folder)

    def weight(self, key: Key) -> np.ndarray:
        """A weight as the student stores it."""
        return self.student.weights[key[0]][key[1]].load()

    def legal(self, key: Key) -> list[Scheme]:
        """How the tier can store a weight."""
        layer, shape = self.calibration.entry(*key).layer, self.student.weights[key[0]][key[1]].shape
        schemes = [parse_scheme(name) for name in self.schemes]
        form = self.request.build.format
        fit = [scheme for scheme in schemes if not unsupported(form, layer, shape, scheme, self.tier, self.request.build.target)]
        # Away from products, w8a8 means int8: its activations are not rounded.
        return [scheme for scheme in fit if layer == "linear" or not scheme.dynamic_activations]

    def foretell(self) -> dict[Key, list[Option]]:
        """Every weight's options, their errors foretold; kept in a file, weight by weight."""
        file = self.request.work / f"errors-{self._digest()}.jsonl"
        known = _read_lines(file)
        for i, key in enumerate(self.keys):
            self.tell(f"encoding, weight {i + 1} of {len(self.keys)}")
            sensitivity = self.calibration.known(*key)
            assert sensitivity is not None
            for scheme in self.legal(key):
                name = "/".join((*key, scheme.name))
                if name not in known:
                    weight = self.weight(key)
                    stored = roundtrip(weight, scheme, f"{key[0]}: {key[1]}", sensitivity)
                    known[name] = sensitivity.weight_error(weight, stored)
                    known[name] += sensitivity.rounding_error(scheme) if self.rounds_inputs else 0.0
                    _add_line(file, name, known[name])
        return {
            key: [
                Option(
                    scheme,
                    scheme.size_bytes(self.weight(key).shape),
                    known["/".join((*key, scheme.name))],
                    self._seconds(key, scheme) / self.float_seconds,
                )
                for scheme in self.legal(key)
            ]
            for key in self.keys
        }

    @functools.cached_property
    def float_seconds(self) -> float:
        """Of all products in one picture, in the tier's floating point; foretold."""
        return sum(self._seconds(key, FLOAT) for key in self.keys)

    def _seconds(self, key: Key, scheme: Scheme) -> float:
        """Of a weight's products in one picture, foretold."""
        entry = self.calibration.entry(*key)
        times = ProductTimes(self.request.build.tier, self.request.build.format, self.request.build.compute_units)
        return times.seconds(entry.layer, scheme, float(entry.inputs), self.student.weights[key[0]][key[1]].shape)

    def measure(self, choice: Mapping[Key, Scheme]) -> Measured:
        """Draw the test prompts with a choice; kept in a file."""
        file = self.request.work / f"measured-{self._digest()}.jsonl"
        name = _digest(sorted(("/".join(key), scheme.name) for key, scheme in choice.items()))
        known = _read_lines(file)
        if name not in known:
            factors = self._factors(choice)
            drawn = self._draw(
                Streaming({k: self._substitute(k, scheme, factors.get(k)) for k, scheme in choice.items() if scheme != BASE})
            )
            known[name] = msgspec.to_builtins(compare(self._reference(), drawn))
            _add_line(file, name, known[name])
        return msgspec.convert(known[name], Measured)

    def _factors(self, choice: Mapping[Key, Scheme]) -> dict[Key, np.ndarray]:
        """What a bundle divides inputs by: those that a modulated norm makes, where all products that read them round them."""
        if not self.rounds_inputs:
            return {}
        groups: dict[int | None, list[Key]] = {}
        for key in self.keys:
            if key[0] == "transformer" and reads_modulated(key[1]):
                groups.setdefault(self.calibration.input_number(*key), []).append(key)
        found: dict[Key, np.ndarray] = {}
        for keys in groups.values():
            if all(pays(choice[key]) for key in keys):
                known = self.calibration.known(*keys[0])
                assert known is not None
                assert known.gram is not None  # every linear layer has one
                found |= dict.fromkeys(keys, input_factors(known.gram))
        return found

    def _substitute(self, key: Key, scheme: Scheme, factors: np.ndarray | None) -> Substitute:
        """What stands for a weight; stored once, for every picture reads it."""
        file = self.request.work / "stored" / f"{_digest([self._digest(), key, scheme.name, factors is not None])}.npy"
        if not file.is_file():
            claim_folder(file.parent)
            stored = roundtrip(self.weight(key), scheme, f"{key[0]}: {key[1]}", self.calibration.known(*key), factors)
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
        """Of all that findings depend on."""
        recipe = msgspec.to_builtins(self.calibration.recipe)
        return _digest([recipe, self.test_prompts, self.request.seed, str(self.options), self.rounds_inputs])


def compare(reference: Drawn, drawn: Drawn) -> Measured:
    """Pictures and latents against those of the student.

    Raises:
        InputError: something is not finite.
    """
    if not all(tensor.isfinite().all() for tensor in (*vars(reference).values(), *vars(drawn).values())):
        raise InputError("A picture cannot be compared.", [Complaint("pictures", "NaN or infinite values")])
    squares = (reference.pictures - drawn.pictures).double().square().mean(dim=(1, 2, 3)).numpy()
    psnr = -10 * np.log10(np.maximum(squares, 1e-12))  # 120 dB stands for equal
    moved = float((reference.latents - drawn.latents).double().square().sum())
    return Measured(
        mean_square=float(squares.mean()),
        psnr_db=float(psnr.mean()),
        psnr_p5_db=float(np.percentile(psnr, 5)),
        latent_db=min(120.0, 10 * float(np.log10(float(reference.latents.double().square().sum()) / max(moved, 1e-30)))),
    )


def tune(request: TuneRequest, tell: Tell | None = None, note: Tell | None = None) -> Tuned:
    """Choose a profile; ``tell`` and ``note`` as of :class:`Tuning`.

    Raises:
        InputError: the limits cannot be met, or the request cannot be fulfilled.
    """
    tuning = Tuning(request, tell, note)
    options = tuning.foretell()
    uniforms = [_measured(tuning, point) for point in _uniform_points(tuning, options)]
    options = _corrected(options, uniforms)
    points = []
    for i, limit in enumerate(_sizes(options, request)):
        tuning.tell(f"searching and drawing, size {i + 1}")
        chosen = choose(list(options.values()), "error", Limits(size_bytes=limit, time=request.max_time))
        points.append(_measured(tuning, _point(f"searched {i + 1}", options, dict(zip(options, chosen, strict=True)))))
    points = list({p.size_bytes: p for p in points}.values())
    best = _best(request, points)
    reasons = {key: _reason(options[key], best.choice[key]) for key in best.choice}
    return Tuned(as_profile(best.choice, BASE, reasons), best, (*uniforms, *points), options, tuning.float_seconds)


def _uniform_points(tuning: Tuning, options: Mapping[Key, Sequence[Option]]) -> list[Point]:
    """Every scheme of the tier for all weights that take it; the others keep the base scheme."""
    points = []
    for name in tuning.schemes:
        scheme = parse_scheme(name)
        chosen = {}
        for key, found in options.items():
            by_name = {option.scheme.name: option for option in found}
            chosen[key] = by_name.get(scheme.name, by_name.get(BASE.name, found[0]))
        points.append(_point(name, options, chosen))
    return points


def _point(name: str, options: Mapping[Key, Sequence[Option]], chosen: Mapping[Key, Option]) -> Point:
    error = sum(option.error for option in chosen.values())
    return Point(
        name,
        {key: option.scheme for key, option in chosen.items()},
        sum(option.size_bytes for option in chosen.values()),
        sum(option.time for option in chosen.values()),
        -10 * float(np.log10(max(error, 1e-12))),
    )


def _measured(tuning: Tuning, point: Point) -> Point:
    tuning.tell(f"drawing with {point.name}")
    return replace(point, measured=tuning.measure(point.choice))


def _corrected(options: Mapping[Key, Sequence[Option]], uniforms: Sequence[Point]) -> dict[Key, list[Option]]:
    """Forecasts times what each scheme's uniform choice showed over what it was foretold.

    Forecasts add up errors that are small and independent; what large ones do together is seen here.
    """
    factor = {}
    for point in uniforms:
        assert point.measured is not None
        factor[point.name] = max(point.measured.mean_square, 1e-12) / max(10 ** (-point.foretold_db / 10), 1e-12)
    return {
        key: [replace(option, error=option.error * factor.get(option.scheme.name, 1.0)) for option in found]
        for key, found in options.items()
    }


def _sizes(options: Mapping[Key, Sequence[Option]], request: TuneRequest) -> list[float]:
    """Sizes to search at: a row from the largest to the least that there are, and the limit with some below it."""
    least, most = (sum(pick(option.size_bytes for option in found) for found in options.values()) for pick in (min, max))
    row = np.geomspace(most, least + 1, SIZES)  # a byte more: the very least there is would be hard on a solver
    if request.max_bytes is not None and request.max_bytes < most:
        choose(list(options.values()), "error", Limits(size_bytes=request.max_bytes))  # complains if that is too little
        near = request.max_bytes * np.array([1.0, 0.99, 0.97, 0.94])
        row = np.concatenate([near[near > least], row])
    return [float(size) for size in row]


def _best(request: TuneRequest, points: Sequence[Point]) -> Point:
    """The least error within the bytes; or, where quality is the limit, the least bytes that reach it."""
    if request.max_bytes is not None:
        points = [point for point in points if point.size_bytes <= request.max_bytes]
        if request.min_db is None:
            return min(points, key=_mean_square)
    wanted = DEFAULT_MIN_DB if request.min_db is None else request.min_db
    good = [point for point in points if -10 * np.log10(max(_mean_square(point), 1e-12)) >= wanted]
    if not good:
        best = min(points, key=_mean_square)
        got = -10 * float(np.log10(max(_mean_square(best), 1e-12)))
        complaint = Complaint("--min-db", "is not reached", f"{wanted:g} dB", f"{got:.1f} dB with {best.size_bytes} bytes")
        raise InputError("No choice is good enough.", [complaint], "ask for fewer dB, or allow more bytes or time")
    return min(good, key=lambda point: point.size_bytes)


def _mean_square(point: Point) -> float:
    assert point.measured is not None
    return point.measured.mean_square


def _reason(options: Sequence[Option], scheme: Scheme) -> str:
    """What the chosen scheme costs, and what the next smaller one would."""
    taken = next(option for option in options if option.scheme == scheme)
    smaller = [option for option in options if option.size_bytes < taken.size_bytes]
    said = f"foretold {_db(taken.error)}"
    if smaller:
        best = min(smaller, key=lambda option: option.error)
        said += f"; {best.scheme.name} would save {taken.size_bytes - best.size_bytes} bytes and give {_db(best.error)}"
    return said


def _db(error: float) -> str:
    return "no error" if error <= 1e-12 else f"{-10 * np.log10(error):.0f} dB"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def _add_line(file: Path, name: str, value: Any) -> None:
    with writing(file), append_to(file) as out:
        out.write(json.dumps([name, value]) + "\n")


def _read_lines(file: Path) -> dict[str, Any]:
    """What was found before; a line that was cut short is not there."""
    found: dict[str, Any] = {}
    if file.is_file():
        for line in file.read_text("utf-8").splitlines():
            try:
                name, value = json.loads(line)
            except ValueError:
                continue
            found[name] = value
    return found


def check_profile_file(file: Path, force: bool) -> None:
    """Refuse a place that a profile cannot be written to, before the work.

    Raises:
        InputError: it is there already, or its folder is not.
    """
    if file.is_dir() or (os.path.lexists(file) and not force):
        raise InputError(f"{file} is there already.", remedy="give another file, or --force to replace it")
    check_writable(file, "-o", "The profile cannot be written.")


def write_profile(tuned: Tuned, request: TuneRequest, file: Path) -> None:
    """Write the chosen profile, with what it is beside it."""
    found = tuned.chosen.measured
    assert found is not None
    prompts = "calibrated" if request.calibration is None else f"calibrated by {request.calibration.name}"
    comment = (
        f"Chosen by flash-deploy tune for {request.build.tier}: {tuned.chosen.size_bytes} bytes of weights, "
        f"pictures {found.psnr_db:.1f} dB PSNR (5th percentile {found.psnr_p5_db:.1f}).\n"
        f"Measured on {request.build.student.name}, {prompts}, seed {request.seed}. Build with --calibration for the same codes."
    )
    write_text(file, profile_toml(tuned.profile, comment))


def remove_work(folder: Path) -> None:
    """Remove a working folder that is no longer needed."""
    remove_tree(folder)
