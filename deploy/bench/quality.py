"""Quality of every bundle on every target: pictures of fixed prompts and seeds, beside the fp32 student's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.quality.drawing import Drawn, Wanted
from benchmarks.quality.pictures import ClipScore, Quality, assess
from benchmarks.quality.worlds import World, world_named
from benchmarks.results.picture_grid import Pictures
from deploy.bench.processes import Job, draw
from deploy.bench.request import BenchRequest
from deploy.bench.targets import REFERENCE, PeerTarget, find_target
from deploy.errors import Complaint, InputError

SCORE_SEED = (
    7  # of the captions that are scored, as in benchmarks/studies/scheme_quality.py: others than students are calibrated on
)
FIRST_SCORED = 1000  # the seed of the first scored picture's noise


@dataclass(frozen=True)
class Judgement:
    """Figures and pictures of one job."""

    quality: Quality
    pictures: Pictures


class Judge:
    """Draws the same pictures everywhere and compares them with the fp32 student's in diffusers.

    Args:
        request: with a student.

    Raises:
        InputError: prompts or CLIP cannot be used.
    """

    def __init__(self, request: BenchRequest) -> None:
        self._request, self._world = request, _world(request)
        self._wanted = _wanted(request, self._world)
        self._clip: ClipScore | None = None
        if request.clip is not None:
            from benchmarks.quality.clip_score import clip_scorer

            self._clip = clip_scorer(request.clip)
        self._references: dict[str, list[Drawn]] = {}

    def judge(self, job: Job, tell: Callable[[str], None]) -> Judgement:
        """One bundle or peer on its target.

        Raises:
            InputError: the target fails.
        """
        wanted, request, where = self._wanted, self._request, f"{job.subject} on {job.target_name}"
        truth = self._reference(job, tell)
        itself = job.target_name == REFERENCE
        tell(f"drawing {len(wanted)} pictures: {where}")
        drawn = truth if itself else draw(job, wanted, request.remote)
        judged = assess(wanted, truth, drawn, where, request.score, self._clip, self._world)
        name = "it is the reference" if itself else "the student in diffusers, fp32"
        shown = slice(0, len(wanted) - request.score)
        pictures = Pictures(job.subject, job.target_name, tuple(wanted[shown]), tuple(drawn[shown]), tuple(truth[shown]))
        return Judgement(Quality(reference=name, pictures=judged), pictures)

    def _reference(self, job: Job, tell: Callable[[str], None]) -> list[Drawn]:
        """The fp32 student's pictures of the job's kind."""
        target = find_target(REFERENCE)
        assert isinstance(target, PeerTarget)
        reference = Job("the student", REFERENCE, target, job.assignment, "")
        key = target.job(reference.assignment)
        if key not in self._references:
            tell(f"drawing {len(self._wanted)} pictures with the student in diffusers")
            self._references[key] = draw(reference, self._wanted, None)
        return self._references[key]


def _world(request: BenchRequest) -> World:
    """The world whose scorer is asked, if it is: the student's."""
    source = request.source(keep_t5=True) if request.score else None
    if source is None:
        return world_named(None)
    from exporters.student.open import open_source  # not there without flash-deploy[export]

    return world_named(open_source(source).defaults.world)


def _wanted(request: BenchRequest, world: World) -> list[Wanted]:
    """Prompts, each with its own seed, and after them the captions to be scored."""
    from deploy.prompts import read_prompts
    from deploy.tune.calibrate import default_prompts

    assert request.student is not None
    prompts = read_prompts(request.prompts) if request.prompts else default_prompts(request.student)
    if len(prompts) < request.pictures:
        complaint = Complaint("--pictures", "more than there are prompts", f"at most {len(prompts)}", str(request.pictures))
        raise InputError("There are too few prompts.", [complaint], "give more with --prompts")
    wanted = [Wanted(prompt, seed) for seed, prompt in enumerate(prompts[: request.pictures])]
    captions = world.captions(request.score, SCORE_SEED)
    return wanted + [Wanted(caption, FIRST_SCORED + i) for i, caption in enumerate(captions)]
