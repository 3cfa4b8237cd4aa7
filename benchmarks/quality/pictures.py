"""How pictures differ from the fp32 student's: decibels of latents and pictures, SSIM, and whether they show what they should."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.extra import need
from benchmarks.quality.drawing import Drawn, Wanted
from benchmarks.quality.worlds import World, world_named
from distillation.shape_world import SIZE_PIXELS
from exporters.reference.decibels import EQUAL_DB, psnr_db, snr_db
from quantization.errors import Complaint, InputError

WINDOW_PIXELS, WINDOW_SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004, section III.B and III.C
CLOSE_DB = 40.0  # mean PSNR from which on pictures are taken for the same: the least that `verify` asks of fp16

ClipScore = Callable[[Sequence[np.ndarray], Sequence[str]], list[float]]


class PictureQuality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One picture beside the fp32 student's of the same prompt and noise.

    Attributes:
        prompt: what it shows.
        seed: of its noise.
        psnr_db: of the picture, in dB; 999 where both are equal.
        ssim: structural similarity, at most 1.
        latent_db: signal-to-noise ratio of the final latents, in dB; none where the runtime does not give them away.
        right: whether the scorer finds the caption true of it; none where it was not asked.
        reference_right: likewise, of the fp32 student's picture.
        clip: CLIP score, 0 to 100.
        reference_clip: of the fp32 student's picture.
    """

    prompt: str
    seed: int
    psnr_db: float
    ssim: float
    latent_db: float | None = None
    right: bool | None = None
    reference_right: bool | None = None
    clip: float | None = None
    reference_clip: float | None = None


class Score(msgspec.Struct, frozen=True):
    """How many of the scored pictures show what their captions say.

    Attributes:
        count: pictures.
        share: of right ones.
        low: lower end of its 95 % interval.
        high: upper end.
        reference_share: of the fp32 student's.
        lost: right in the student, wrong here.
        won: the other way round.
        p_value: of lost and won differing as they do by chance (exact McNemar test).
    """

    count: int
    share: float
    low: float
    high: float
    reference_share: float
    lost: int
    won: int
    p_value: float


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All pictures of a bundle on a target, and what they were compared with."""

    reference: str
    pictures: tuple[PictureQuality, ...]

    @property
    def psnr_db(self) -> float:
        """Mean over the pictures, in dB."""
        return float(np.mean([picture.psnr_db for picture in self.pictures]))

    @property
    def psnr_p5_db(self) -> float:
        """The 5th percentile: one picture in twenty is worse."""
        return float(np.percentile([picture.psnr_db for picture in self.pictures], 5))

    @property
    def ssim(self) -> float:
        """Mean over the pictures."""
        return float(np.mean([picture.ssim for picture in self.pictures]))

    @property
    def latent_db(self) -> float | None:
        """Mean over the pictures, in dB."""
        decibels = [picture.latent_db for picture in self.pictures if picture.latent_db is not None]
        return float(np.mean(decibels)) if decibels else None

    @property
    def clip(self) -> tuple[float, float] | None:
        """Mean CLIP score, and the fp32 student's."""
        scores = [(p.clip, p.reference_clip) for p in self.pictures if p.clip is not None and p.reference_clip is not None]
        return (
            (float(np.mean([ours for ours, _ in scores])), float(np.mean([theirs for _, theirs in scores]))) if scores else None
        )

    @property
    def score(self) -> Score | None:
        """The score of the pictures that the scorer was asked about."""
        scored = [(bool(p.right), bool(p.reference_right)) for p in self.pictures if p.right is not None]
        if not scored:
            return None
        share = sum(right for right, _ in scored) / len(scored)
        low, high = wilson_interval(sum(right for right, _ in scored), len(scored))
        lost = sum(reference and not right for right, reference in scored)
        won = sum(right and not reference for right, reference in scored)
        of_reference = sum(reference for _, reference in scored) / len(scored)
        return Score(len(scored), share, low, high, of_reference, lost, won, sign_test(lost, won))


def assess(
    wanted: Sequence[Wanted],
    reference: Sequence[Drawn],
    drawn: Sequence[Drawn],
    where: str,
    scored: int = 0,
    clip: ClipScore | None = None,
    world: World | None = None,
) -> tuple[PictureQuality, ...]:
    """Compare pictures, one by one.

    Args:
        wanted: what was to be drawn; the last ``scored`` are captions of the student's world.
        reference: the fp32 student's.
        drawn: those to be judged.
        where: what drew them, for complaints.
        scored: how many the scorer is asked about.
        clip: gives pictures and prompts their CLIP scores.
        world: whose captions those are; the first built-in student's by default.

    Raises:
        InputError: pictures are missing, have another size, or hold what is not finite.
    """
    if len(drawn) != len(wanted):
        complaint = Complaint(where, "pictures are missing", str(len(wanted)), str(len(drawn)))
        raise InputError("The pictures cannot be compared.", [complaint])
    prompts, world = [one.prompt for one in wanted], world or world_named(None)
    clips = [clip([one.picture for one in side], prompts) if clip else [None] * len(wanted) for side in (drawn, reference)]
    judged = []
    for i, (one, truth, got) in enumerate(zip(wanted, reference, drawn, strict=True)):
        name = f"{where}, {one.prompt!r}"
        ask = i >= len(wanted) - scored
        latents = None
        if got.latents is not None and truth.latents is not None:
            latents = _finite(snr_db(truth.latents, got.latents, f"latents of {name}"))
        judged.append(
            PictureQuality(
                prompt=one.prompt,
                seed=one.seed,
                psnr_db=_finite(psnr_db(truth.picture, got.picture, name)),
                ssim=ssim(truth.picture, got.picture, name),
                latent_db=latents,
                right=world.right(got.picture, one.prompt) if ask else None,
                reference_right=world.right(truth.picture, one.prompt) if ask else None,
                clip=clips[0][i],
                reference_clip=clips[1][i],
            )
        )
    return tuple(judged)


def _finite(decibels: float) -> float:
    return max(-EQUAL_DB, min(EQUAL_DB, decibels))


def can_be_scored(height: int, width: int) -> bool:
    """Whether the scorer knows pictures of this size in pixels: the captioned worlds'."""
    return (height, width) == (SIZE_PIXELS, SIZE_PIXELS)


def ssim(reference: np.ndarray, got: np.ndarray, where: str = "picture") -> float:
    """Structural similarity, the mean over channels and over every place where the whole window lies in the picture.

    Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE Transactions on Image Processing 13 (2004), equation 13, with
    its constants: a Gaussian window of 11 x 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03; pictures in [0, 1], so L = 1.

    Args:
        reference: ``[height, width, channels]``, at least 11 x 11.
        got: likewise.
        where: for complaints.

    Raises:
        InputError: other shapes, smaller ones, or what is not finite.
    """
    if reference.shape != got.shape or not (np.isfinite(reference).all() and np.isfinite(got).all()):
        complaint = Complaint(where, "of another shape, or not finite", str(list(reference.shape)), str(list(got.shape)))
        raise InputError("The pictures cannot be compared.", [complaint])
    if min(reference.shape[:2]) < WINDOW_PIXELS:
        complaint = Complaint(where, "too small for SSIM", f"at least {WINDOW_PIXELS} pixels", str(list(reference.shape)))
        raise InputError("The pictures cannot be compared.", [complaint])
    x, y = reference.astype(np.float64), got.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))))


def _blur(planes: np.ndarray) -> np.ndarray:
    """Gaussian means of ``[height, width, channels]``, of whole windows only."""
    offsets = np.arange(WINDOW_PIXELS) - WINDOW_PIXELS // 2
    window = np.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    window /= window.sum()
    for axis in (0, 1):
        planes = sliding_window_view(planes, WINDOW_PIXELS, axis) @ window
    return planes


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): unlike the normal approximation it stays within 0 and 1 and is right near both.

    >>> [round(edge, 4) for edge in wilson_interval(392, 500)]
    [0.7458, 0.8178]
    """
    need("scipy")
    from scipy.stats import binomtest

    low, high = binomtest(right, count).proportion_ci(method="wilson")
    return float(low), float(high)


def sign_test(lost: int, won: int) -> float:
    """Two-sided p of a fair coin falling as unevenly (the exact McNemar test of paired verdicts).

    >>> sign_test(5, 0), sign_test(3, 3)
    (0.0625, 1.0)
    """
    need("scipy")
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
