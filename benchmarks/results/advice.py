"""Which bundle to ship to which tier, and why, in words: from the tier's budget and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.quality.pictures import CLOSE_DB
from benchmarks.results.comparison import difference
from benchmarks.results.record import Entry
from benchmarks.results.tables import db, device, mb, ms, picture_summary
from quantization.schemes import one_of

SIGNIFICANT = (
    0.05  # of the sign test on scored pictures: from here on a bundle is taken to draw fewer right ones than the student
)


SLOWER = 1.05  # over the fastest, where there are too few rounds to test: our choice


@dataclass(frozen=True)
class TierLimits:
    """What a class of devices has room for.

    Attributes:
        name: for example ``phone``.
        description: in words.
        memory_bytes: what one generation may take at its peak.
        download_bytes: what a bundle may take on disk.
        schemes: by model format, how weights can be stored, as patterns.
        targets: beginnings of the targets that are such a device; others only stand in for it.
    """

    name: str
    description: str
    memory_bytes: int
    download_bytes: int
    schemes: Mapping[str, Sequence[str]]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Forecast:
    """How long a picture of a bundle takes on a device that is not here, by analysis: no measurement.

    Attributes:
        bundle: its name.
        tier: the device's tier.
        target: where on it.
        seconds: of one picture, graphs loaded.
        low: lower end of what it may take, in s.
        high: upper end.
    """

    bundle: str
    tier: str
    target: str
    seconds: float
    low: float
    high: float

    def __str__(self) -> str:
        told, low, high = (_duration(value) for value in (self.seconds, self.low, self.high))
        return f"{self.bundle} on {self.target}: {told} a picture ({low} to {high})"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


@dataclass(frozen=True)
class Advice:
    """For one tier.

    Attributes:
        tier: which.
        bundle: what to ship; none where nothing that was measured can be.
        target: where to run it, of those measured.
        why: in words, with the figures.
        against: every other bundle, and why not that one.
        stands_in: whether the times are of another kind of device.
        predicted: what was predicted for the tier, of every bundle; never what the choice was made by.
    """

    tier: TierLimits
    bundle: str | None
    target: str
    why: str
    against: tuple[str, ...]
    stands_in: bool
    predicted: tuple[Forecast, ...] = ()


def advise(
    tiers: Sequence[TierLimits], entries: Sequence[Entry], rounds: int, forecasts: Sequence[Forecast] = ()
) -> list[Advice]:
    """Advice for every tier.

    Of the bundles that fit the tier (format, schemes, download, memory), those whose pictures are the student's: mean PSNR of at
    least :data:`CLOSE_DB`, and no fewer right ones where they were scored. Of those the fastest; of equally fast ones the
    smallest.
    """
    candidates = [entry for entry in entries if entry.facts is not None and entry.measured is not None]
    return [
        replace(
            _advise(tier, candidates, rounds), predicted=tuple(forecast for forecast in forecasts if forecast.tier == tier.name)
        )
        for tier in tiers
    ]


def lead(advice: Sequence[Advice]) -> str:
    """The first paragraph: what to ship where, in one sentence for each bundle."""
    by_bundle: dict[str, list[Advice]] = {}
    for one in advice:
        if one.bundle is not None:
            by_bundle.setdefault(one.bundle, []).append(one)
    sentences = []
    for bundle, ones in by_bundle.items():
        ones.sort(key=lambda one: one.stands_in)
        names = [one.tier.name for one in ones]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        sentences.append(f"Ship {bundle} to {listed}: {ones[0].why}.")
    if left := [one.tier.name for one in advice if one.bundle is None]:
        sentences.append(f"Nothing that was measured here is for {', '.join(left)}.")
    if stand := sorted({one.tier.name for one in advice if one.stands_in and one.bundle is not None}):
        sentences.append(
            f"Times for {', '.join(stand)} are of another device; sizes, memory and pictures hold there, times do not."
        )
    return " ".join(sentences)


def _advise(tier: TierLimits, candidates: Sequence[Entry], rounds: int) -> Advice:
    against: dict[str, str] = {}
    fitting = []
    for entry in candidates:
        if reason := _misfit(tier, entry):
            against.setdefault(entry.bundle, reason)
        else:
            fitting.append(entry)
    real = [entry for entry in fitting if entry.target.startswith(tier.targets)]
    stands_in = not real
    fitting = real or [entry for entry in fitting if not entry.target.startswith("browser")]
    if not fitting:
        return Advice(tier, None, "", "no bundle that was measured fits", _told(against, None), stands_in)
    close = [entry for entry in fitting if not _strange(entry)]
    if not close:
        best = max(fitting, key=_psnr)
        why = (
            f"of those that fit, it draws closest to the student ({_quality(best)}), yet not the same pictures: {_strange(best)}"
        )
        other = {entry.bundle: f"its pictures are further off ({_quality(entry)})" for entry in fitting}
        return Advice(
            tier, best.bundle, best.target, f"{why}; {_fits(tier, best)}", _told(other | against, best.bundle), stands_in
        )
    best = _fastest(close, rounds)
    alike = len({entry.bundle for entry in close})
    which = "it alone fits and draws the student's pictures"
    if alike > 1:
        which = f"of the {alike} bundles that fit and draw the student's pictures "
        which += (
            "it is the smallest, and none is faster by more than noise" if _tied(best, close, rounds) else "it is the fastest"
        )
    why = f"{which} ({_quality(best)}, {ms(picture_summary(best).median)} a picture on {best.target}, {device(best)})"
    other = {entry.bundle: _behind(entry, best) for entry in reversed(fitting)}
    return Advice(tier, best.bundle, best.target, f"{why}; {_fits(tier, best)}", _told(other | against, best.bundle), stands_in)


def _behind(entry: Entry, best: Entry) -> str:
    """Why another than the best one is not the best one."""
    if strange := _strange(entry):
        return strange
    ratio = picture_summary(entry).median / picture_summary(best).median
    return f"{ratio:.2f} of its time, {entry.bytes_on_disk / best.bytes_on_disk:.2f} of its size ({entry.target})"


def _fits(tier: TierLimits, entry: Entry) -> str:
    download = f"{mb(entry.bytes_on_disk)} of {mb(tier.download_bytes)} to download"
    return f"{download}, {mb(_memory(entry))} of {mb(tier.memory_bytes)} memory"


def _told(against: Mapping[str, str], best: str | None) -> tuple[str, ...]:
    return tuple(f"not {bundle}: {reason}" for bundle, reason in against.items() if bundle != best)


def _misfit(tier: TierLimits, entry: Entry) -> str:
    """Why a tier has no place for a bundle; empty where it has."""
    assert entry.facts is not None
    if entry.facts.model_format not in tier.schemes:
        return f"its format is {entry.facts.model_format}"
    if foreign := [scheme for scheme in entry.facts.schemes if not one_of(scheme, tier.schemes[entry.facts.model_format])]:
        return f"the tier cannot run {', '.join(foreign)}"
    if entry.bytes_on_disk > tier.download_bytes:
        return f"{mb(entry.bytes_on_disk)} are over the download budget of {mb(tier.download_bytes)}"
    if _memory(entry) > tier.memory_bytes:
        return f"{mb(_memory(entry))} are over the memory budget of {mb(tier.memory_bytes)}"
    return ""


def _strange(entry: Entry) -> str:
    """How its pictures are not the student's; empty where they are, or where nobody knows."""
    if entry.quality is None:
        return ""
    if entry.quality.psnr_db < CLOSE_DB:
        return f"mean PSNR {db(entry.quality.psnr_db)} is under {CLOSE_DB:.0f} dB"
    score = entry.quality.score
    if score is not None and score.lost > score.won and score.p_value < SIGNIFICANT:
        return f"it draws {score.share:.3f} right where the student draws {score.reference_share:.3f} (p {score.p_value:.3f})"
    return ""


def _fastest(entries: Sequence[Entry], rounds: int) -> Entry:
    """The smallest of those that are not slower than the fastest."""
    return min((entry for entry in entries if not _slower(entry, entries, rounds)), key=lambda entry: entry.bytes_on_disk)


def _slower(entry: Entry, entries: Sequence[Entry], rounds: int) -> bool:
    first = min(entries, key=lambda e: picture_summary(e).median)
    if entry is first:
        return False
    assert entry.measured is not None
    assert first.measured is not None
    one, two = first.measured.picture.warm, entry.measured.picture.warm
    against_first = difference(one, two, rounds, rounds, np.random.default_rng(0))
    return against_first.ratio > SLOWER if against_first.verdict == "too few rounds" else against_first.verdict == "slower"


def _tied(best: Entry, entries: Sequence[Entry], rounds: int) -> bool:
    others = [entry for entry in entries if entry.bundle != best.bundle]
    return any(not _slower(entry, entries, rounds) for entry in others)


def _memory(entry: Entry) -> int:
    assert entry.measured is not None
    return entry.measured.picture.peak_memory_bytes or 0


def _psnr(entry: Entry) -> float:
    return entry.quality.psnr_db if entry.quality else 0.0


def _quality(entry: Entry) -> str:
    if entry.quality is None:
        return "quality not measured: give --student"
    score = entry.quality.score
    right = (
        ""
        if score is None
        else f", {score.share:.3f} of its pictures right where {score.reference_share:.3f} of the student's are"
    )
    return f"PSNR {db(entry.quality.psnr_db)}{right}"
