"""What each part of the method adds: rows that differ in one thing, from one fork of a run, over several seeds.

    flash-deploy distill shapes-cpu -o RUN
    python -m benchmarks.studies.distilled.ablations RUN --seeds 3 [--steps 200] [--row default-4 --row renoised-4]

Teacher and fork are the run's own: the rows are trained in a folder of their own that leads to its stages, and nothing in the
run is changed but its cache, which gains what is missing. A row takes as long as the default, by the run's own CPU seconds for
a pass through the transformer; its seconds are told as they were. Rows of one seed are asked the same captions from the same
noise, those of another seed others: intervals over seeds are of both chances. The same command goes on where it was stopped. It
ends with ``ablations.json`` and ``ablations.md``.

Seeds change everything after the fork but the heads' first weights, which are the recipe's seed's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.extra import need
from benchmarks.results.statistics import MeanInterval, t_interval
from benchmarks.studies.distilled.captions import ASKED_SEED, Captions, kinds
from benchmarks.studies.distilled.figures import variety
from benchmarks.studies.distilled.recipe_text import recipe_toml
from benchmarks.studies.distilled.rows import STEPS, Fork, Row, all_rows, per_step, recipe_of
from benchmarks.studies.distilled.run_folder import RunFolder
from benchmarks.studies.distilled.study import LAW, circumstances
from benchmarks.studies.distilled.tables import points, table
from benchmarks.studies.distilled.verdicts import Verdicts
from distillation.run.order import Order
from distillation.run.records import METRICS, Display
from distillation.run.start import INTERRUPTED, begin
from distillation.stages import MatchStage, TrajectoryStage
from distillation.world.diversity import distance
from quantization.errors import Complaint, InputError
from quantization.files import write_bytes, write_text

__all__ = ["LEAST", "Ablation", "Measured", "ablation", "markdown", "train"]

LEAST = 0.015
"""A smaller difference is not called one: over 3000 captions its standard error is .005, and there are many rows."""
NO_DIFFERENCE, FAILED = "no difference seen", "failed"

HEADS = ("", "what", "right, each seed", "mean", "against", "difference", "", "to the renderer's law", "std", "stray", "CPU s")

Seeded = Mapping[tuple[str, int], Row]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a row came to with one seed.

    Attributes:
        share: of right pictures.
        law: Kolmogorov-Smirnov distance of their things' places and sizes to the renderer's; none where none is right.
        std: of the latents, which rises with oversaturation.
        stray: share of pixels near no entry of the palette.
        cpu_seconds: of its stages after the fork.
    """

    share: float
    law: float | None
    std: float
    stray: float
    cpu_seconds: float


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """One row.

    Attributes:
        name: of it.
        told: what it is.
        control: the row that it is compared with; none where empty.
        by_seed: what it came to; none where a seed's training failed.
        difference: of the share from the control's, seed by seed, with Student's interval; none where it has no control, or a
            seed failed.
        verdict: of that difference.
    """

    name: str
    told: str
    control: str
    by_seed: tuple[Measured | None, ...]
    difference: MeanInterval | None
    verdict: str


def train(run: RunFolder, out: Path, seeded: Seeded, processes: int) -> set[tuple[str, int]]:
    """Train all rows, each as far as it is not; returns those that failed, whose reasons are told on stderr.

    Args:
        run: where they begin.
        out: their own folder.
        seeded: rows by name and seed.
        processes: that share a batch.

    Raises:
        InputError: the run has not come to the fork yet.
        KeyboardInterrupt: the training was asked to stop.
    """
    _lead_to(run, out, seeded)
    failed: set[tuple[str, int]] = set()
    while True:
        rest = {key: row for key, row in seeded.items() if key not in failed}
        if not rest:
            raise InputError("Every row failed.", remedy="what is said above tells why")
        recipe = recipe_of(run.recipe, rest.values(), processes)
        write_text(out / "recipe.toml", recipe_toml(recipe))
        try:
            code = begin(Order(str(out / "recipe.toml"), None, out, device="cpu"))
        except InputError as error:  # of a run in this process
            sys.stderr.write(f"error: {error}\n")
            code = 2
        if code == 0:
            return failed
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        stopped_at = _first_missing(out)
        more = {key for key, row in rest.items() if stopped_at in {stage.name for stage in row.stages}}
        if not more:
            raise InputError(f"The training ended with code {code}.", remedy="what is said above tells why")
        failed |= more


def _lead_to(run: RunFolder, out: Path, seeded: Seeded) -> None:
    """Links to the run's stages and its cache: what is there is not made again.

    Raises:
        InputError: a stage before the fork was not made yet.
    """
    (out / "stages").mkdir(parents=True, exist_ok=True)
    (run.folder / "cache").mkdir(exist_ok=True)
    recipe = recipe_of(run.recipe, seeded.values(), 1)
    own = {stage.name for row in seeded.values() for stage in row.stages}
    places = [run.stage_folder(stage.name) for stage in recipe.stages if stage.name not in own]
    for link, target in [(out / "cache", run.folder / "cache"), *((out / "stages" / place.name, place) for place in places)]:
        if not link.exists():
            link.unlink(missing_ok=True)  # one that leads to where the run was before
            link.symlink_to(target.resolve(), target_is_directory=True)


def _first_missing(out: Path) -> str:
    """The stage that a run has stopped at; empty where it is none."""
    if not (out / "recipe.json").is_file():
        return ""
    trained = RunFolder(out)
    for stage in trained.recipe.stages:
        if not (trained.run.lineage(stage.name).results[0] / "stage.json").is_file():
            return stage.name
    return ""


def ablation(
    trained: RunFolder, verdicts: Verdicts, seeded: Seeded, failed: set[tuple[str, int]], prompts: int, processes: int
) -> list[Ablation]:
    """Score all rows.

    Args:
        trained: their folder.
        verdicts: where theirs are kept.
        seeded: rows by name and seed.
        failed: those that are not there.
        prompts: asked of each.
        processes: that shared a batch, whose CPU seconds count.
    """
    measured: dict[tuple[str, int], Measured | None] = {}
    for key, row in seeded.items():
        measured[key] = None if key in failed else _measure(trained, verdicts, row, key[1], prompts, processes)
    names, seeds = list(dict.fromkeys(name for name, _ in seeded)), sorted({seed for _, seed in seeded})
    results = []
    for name in names:
        row = seeded[name, seeds[0]]
        by_seed = [measured[name, seed] for seed in seeds]
        controls = [measured.get((row.control, seed)) for seed in seeds]
        results.append(_result(row, by_seed, controls))
    return results


def _result(row: Row, by_seed: Sequence[Measured | None], controls: Sequence[Measured | None]) -> Ablation:
    pairs = [(own.share, other.share) for own, other in zip(by_seed, controls, strict=True) if own and other]
    difference, verdict = None, "" if None not in by_seed else FAILED
    if row.control and len(pairs) == len(by_seed):
        difference = t_interval([own - other for own, other in pairs])
        verdict = _verdict(difference, len(pairs))
    return Ablation(
        name=row.name, told=row.told, control=row.control, by_seed=tuple(by_seed), difference=difference, verdict=verdict
    )


def _verdict(difference: MeanInterval, seeds: int) -> str:
    if seeds == 1:
        return "one seed tells nothing"
    if difference.low <= 0 <= difference.high or abs(difference.mean) < LEAST:
        return NO_DIFFERENCE
    return "better" if difference.mean > 0 else "worse"


def _measure(trained: RunFolder, verdicts: Verdicts, row: Row, seed: int, prompts: int, processes: int) -> Measured:
    captions = Captions(seed=ASKED_SEED + 1 + seed)
    name = f"{row.name}, seed {seed}"
    got = verdicts.of(trained.stage(row.scored).named(name, seed=seed, without_t5=row.without_t5), captions, prompts)
    law, by_kind = verdicts.of(LAW, captions, prompts), kinds(captions.those(range(prompts)))
    own = variety(got, by_kind)
    return Measured(
        share=float(got["right"].mean()),
        law=distance(own, variety(law, by_kind))["all"] if own.by_kind else None,
        std=float(got["std"].mean()),
        stray=float(got["stray"].mean()),
        cpu_seconds=processes * sum(sum(_step_seconds(trained, stage.name)) for stage in row.stages),
    )


def _step_seconds(run: RunFolder, stage: str) -> list[float]:
    """CPU seconds of each step of a stage that is over, in the first process; a merge has none."""
    run.stage_folder(stage)
    return [step["cpu_seconds"] for step in run.metrics(stage)]


def markdown(results: Sequence[Ablation], seeds: int, prompts: int) -> str:
    """The table, with what it depends on."""
    about = (
        f"{prompts} captions of each of {seeds} seeds, the same for all rows of a seed. Differences in points of a hundred, with "
        "Student's 95 % interval over seeds, which nothing corrects for the number of rows; one whose interval holds 0 or whose "
        f"mean is below {100 * LEAST:g} points is none."
    )
    facts = ", ".join(f"{name} {value}" for name, value in circumstances().items())
    return (
        "\n\n".join(["# What each part of the method adds", facts, about, table(HEADS, [_cells(one) for one in results])]) + "\n"
    )


def _cells(one: Ablation) -> tuple[str, ...]:
    there = [each for each in one.by_seed if each is not None]
    shares = ", ".join(FAILED if each is None else f"{100 * each.share:.1f}" for each in one.by_seed)
    laws = [each.law for each in there if each.law is not None]
    difference = "-" if one.difference is None else points(one.difference.mean, one.difference.low, one.difference.high)
    means = [f"{np.mean(laws):.3f}" if laws and len(laws) == len(there) else "-"]
    if there:
        means += [f"{np.mean([each.std for each in there]):.3f}", f"{np.mean([each.stray for each in there]):.2%}"]
        means.append(f"{np.mean([each.cpu_seconds for each in there]):.0f}")
    mean = f"{100 * np.mean([each.share for each in there]):.1f}" if there else "-"
    return (one.name, one.told, shares, mean, one.control or "-", difference, one.verdict, *means, *["-"] * (4 - len(means)))


def main() -> None:
    """Train, score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--seeds", type=int, default=3, help="of what comes after the fork")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the default's student after the fork; all others as long")
    parser.add_argument("--prompts", type=int, default=3000, help="asked of each row and seed")
    parser.add_argument("--row", action="append", default=[], help="this row (repeatable), with what it is compared with; or all")
    parser.add_argument("--out", type=Path, help="folder for what is trained; RUN/ablations by default")
    parser.add_argument("--processes", type=int, default=2, help="that share a batch, and draw, of one thread each")
    given = parser.parse_args()
    try:
        need("scipy")
        _work(RunFolder(given.run), given.out or given.run / "ablations", given)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _work(run: RunFolder, out: Path, given: argparse.Namespace) -> None:
    seeded = chosen(run, given.steps, given.seeds, given.row)
    processes = min(given.processes, os.cpu_count() or 1)
    failed = train(run, out, seeded, processes)
    with Display(shown=True) as display:
        verdicts = Verdicts(out, processes, display)
        with verdicts.at_work():
            results = ablation(RunFolder(out), verdicts, seeded, failed, given.prompts, processes)
    facts = {"circumstances": circumstances(), "seeds": given.seeds, "prompts": given.prompts, "rows": results}
    write_bytes(out / "ablations.json", msgspec.json.format(msgspec.json.encode(facts), indent=2))
    write_text(out / "ablations.md", markdown(results, given.seeds, given.prompts))
    print(markdown(results, given.seeds, given.prompts))


def chosen(run: RunFolder, steps: int, seeds: int, names: Sequence[str]) -> dict[tuple[str, int], Row]:
    """The rows that are wanted, by name and seed, all of one seed before those of the next.

    Raises:
        InputError: there is no such row, the recipe has no fork, or the run has not come to the matching after it, or does not
            tell how long it took.
    """
    plain = all_rows(run.recipe, steps, lambda fork: _pace(run, fork))
    by_name = {row.name: row for row in plain}
    if strangers := [name for name in names if name not in by_name]:
        raise InputError("There is no such row.", [Complaint("--row", "unknown", ", ".join(by_name), ", ".join(strangers))])
    wanted = {*names, *(by_name[name].control for name in names)} if names else by_name.keys()
    return {(row.name, seed): row.seeded(seed) for seed in range(seeds) for row in plain if row.name in wanted}


def _pace(run: RunFolder, fork: Fork) -> float:
    """CPU seconds of a pass that follows the teacher's path, over those of one that matches: Muon and the way back cost more."""
    follow, match = (_pass_seconds(run, stage) for stage in (fork.follow, fork.match))
    return follow / match


def _pass_seconds(run: RunFolder, stage: TrajectoryStage | MatchStage) -> float:
    steps = _step_seconds(run, stage.name)[getattr(stage, "fake_warmup", 0) :]
    if not steps:
        complaint = Complaint(
            str(run.stage_folder(stage.name) / METRICS), "tells no seconds of a step after the fake model's start"
        )
        raise InputError("It is not known how long a row would take.", [complaint])
    return float(np.median(steps)) / per_step(stage)


if __name__ == "__main__":
    main()
