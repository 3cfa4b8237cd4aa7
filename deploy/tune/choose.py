"""Of all choices of schemes, the one to store weights by: uniform ones, a row of searched ones, and the best of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deploy.errors import Complaint, InputError
from deploy.tune.compare import DrawnErrors
from deploy.tune.tuning import BASE, Tell, TuneRequest, Tuning
from quantization.calibration import Key
from quantization.profile import Profile
from quantization.rules import as_profile
from quantization.schemes import Scheme, parse_scheme
from quantization.search import Limits, Option, choose

DEFAULT_MIN_DB = 40.0  # differences that are not seen side by side
SIZES = 10  # points of the Pareto front


@dataclass(frozen=True)
class Point:
    """One choice: how large, how good as predicted, how good as drawn."""

    name: str
    choice: Mapping[Key, Scheme]
    size_bytes: int
    time: float
    predicted_db: float
    measured: DrawnErrors | None = None


@dataclass(frozen=True)
class Tuned:
    """The outcome: the chosen profile, its point, all points, and the options of every weight.

    ``float_seconds`` is what all products of one picture take in floating point on the tier, predicted; points and options say
    their time as a share of it.
    """

    profile: Profile
    chosen: Point
    points: tuple[Point, ...]
    options: Mapping[Key, Sequence[Option]]
    float_seconds: float


def tune(request: TuneRequest, tell: Tell | None = None, note: Tell | None = None) -> Tuned:
    """Choose a profile; ``tell`` and ``note`` as of :class:`Tuning`.

    Raises:
        InputError: the limits cannot be met, or the request cannot be fulfilled.
    """
    tuning = Tuning(request, tell, note)
    options = tuning.estimate()
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
        for key, weight_options in options.items():
            by_name = {option.scheme.name: option for option in weight_options}
            chosen[key] = by_name.get(scheme.name, by_name.get(BASE.name, weight_options[0]))
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
    """Forecasts times what each scheme's uniform choice showed over what it was predicted.

    Forecasts add up errors that are small and independent; what large ones do together is seen here.
    """
    factor = {}
    for point in uniforms:
        assert point.measured is not None
        factor[point.name] = max(point.measured.mean_square, 1e-12) / max(10 ** (-point.predicted_db / 10), 1e-12)
    return {
        key: [replace(option, error=option.error * factor.get(option.scheme.name, 1.0)) for option in weight_options]
        for key, weight_options in options.items()
    }


def _sizes(options: Mapping[Key, Sequence[Option]], request: TuneRequest) -> list[float]:
    """Sizes to search at: a row from the largest to the least that there are, and the limit with some below it."""
    least, most = (
        sum(pick(option.size_bytes for option in weight_options) for weight_options in options.values()) for pick in (min, max)
    )
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
    said = f"predicted {_db(taken.error)}"
    if smaller:
        best = min(smaller, key=lambda option: option.error)
        said += f"; {best.scheme.name} would save {taken.size_bytes - best.size_bytes} bytes and give {_db(best.error)}"
    return said


def _db(error: float) -> str:
    return "no error" if error <= 1e-12 else f"{-10 * np.log10(error):.0f} dB"
