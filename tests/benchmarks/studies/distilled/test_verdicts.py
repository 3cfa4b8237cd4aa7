"""Verdicts are kept as they come, and controls come out as they have to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.distilled import verdicts as module
from benchmarks.studies.distilled.captions import Captions, kinds
from benchmarks.studies.distilled.figures import diversity, scored, seed_spread
from benchmarks.studies.distilled.run_folder import builtin
from benchmarks.studies.distilled.subjects import Control
from benchmarks.studies.distilled.verdicts import Verdicts, judge
from distillation.run.records import Display
from quantization.errors import InputError

NEW, OLD = Captions(), Captions("old")
TRUE = Control("true")


@dataclass(frozen=True)
class Scripted:
    """Pictures of one grey, or of no colour at all."""

    grey: float
    name: str = "scripted"
    digest: str = "scripted"

    def open(self, captions: Captions) -> Callable[..., Any]:
        return lambda asked, numbers: (np.full((len(asked), 64, 64, 3), self.grey, np.float32), None)


def kept(folder: Path) -> Verdicts:
    return Verdicts(folder, 1, Display(shown=False))


@pytest.mark.parametrize("captions", [NEW, OLD], ids=["new", "old"])
def test_true_pictures_are_right_and_blank_ones_wrong(captions: Captions) -> None:
    assert judge(TRUE, captions, range(30))["right"].all()
    blank = judge(Scripted(0.5), captions, range(30))
    assert not blank["right"].any()
    assert np.isnan(blank["places"]).all()
    assert not blank["stray"].any()  # a background's own grey
    assert judge(Scripted(0.8), captions, range(2))["stray"].tolist() == [1, 1]  # between white and grey, near neither


@pytest.mark.parametrize("captions", [NEW, OLD], ids=["new", "old"])
def test_what_is_asked_does_not_depend_on_who_asks_how_much(captions: Captions) -> None:
    assert captions.those(range(20, 25)) == captions.those(range(40))[20:25]


def test_the_worlds_have_kinds_of_their_own() -> None:
    assert set(kinds(OLD.those(range(60)))) == {"single", "relation", "counting"}
    assert len(set(kinds(NEW.those(range(120))))) == 7


def test_a_study_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_FILE", 10)
    first = kept(tmp_path).of(TRUE, NEW, 25)
    asked = []
    judged = module.judge

    def counted(subject: Any, captions: Captions, numbers: range) -> np.ndarray:
        asked.append(numbers)
        return judged(subject, captions, numbers)

    monkeypatch.setattr(module, "judge", counted)
    again = kept(tmp_path).of(TRUE, NEW, 25)
    assert not asked
    assert again.tobytes() == first.tobytes()
    next(tmp_path.rglob("00000010-10.npy")).unlink()
    assert kept(tmp_path).of(TRUE, NEW, 25).tobytes() == first.tobytes()
    assert asked == [range(10, 20)]
    kept(tmp_path).of(TRUE, NEW, 30)  # more captions: the whole files stay
    assert asked[1:] == [range(20, 30)]


def test_two_processes_judge_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_FILE", 4)
    two = Verdicts(tmp_path / "two", 2, Display(shown=False))
    with two.at_work():
        shared = two.of(TRUE, OLD, 8)
    assert shared.tobytes() == kept(tmp_path / "one").of(TRUE, OLD, 8).tobytes()


def test_other_noise_and_other_captions_are_kept_apart(tmp_path: Path) -> None:
    here = kept(tmp_path)
    for subject, captions in ((TRUE, NEW), (TRUE, OLD), (Control("true", seed=1), NEW), (TRUE, Captions(seed=1))):
        here.of(subject, captions, 5)
    assert len(list((tmp_path / "verdicts").iterdir())) == 4


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    kept(tmp_path).of(TRUE, NEW, 5)
    next(tmp_path.rglob("*.npy")).write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged.*\n?.*remove it"):
        kept(tmp_path).of(TRUE, NEW, 5)


@pytest.mark.parametrize("grey", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_and_not_kept(tmp_path: Path, grey: float) -> None:
    with pytest.raises(InputError, match="captions 0 to 4: pictures hold NaN or infinity"):
        kept(tmp_path).of(Scripted(grey), NEW, 5)
    assert not list(tmp_path.rglob("*.npy"))


def test_variety_of_controls() -> None:
    """Other true pictures have the law and the spread; one place has not the law, one picture a caption has no spread."""
    count = 60
    by_kind = kinds(NEW.those(range(count)))
    law, other, place, picture = (
        judge(control, NEW, range(count))
        for control in (TRUE, Control("true", seed=1), Control("p", "one place"), Control("c", "one a caption"))
    )
    true_spread = seed_spread(law, other)
    assert true_spread is not None
    rows = [
        diversity("x", first, second, by_kind, law, true_spread)
        for first, second in ((other, law), (place, place), (picture, picture))
    ]
    true_law, place_law, picture_law = (row.law["all"] for row in rows if row.law is not None)
    assert place_law > 1.3 * true_law
    assert picture_law < place_law  # that each caption has one picture is nothing that the law sees
    assert [row.spread for row in rows] == [1, 0, 0]
    assert [row.seeds == 0 for row in rows] == [False, True, True]
    nothing = diversity("x", judge(Scripted(0.5), NEW, range(20)), None, by_kind[:20], law[:20], true_spread)
    assert (nothing.right, nothing.law, nothing.seeds, nothing.spread) == (0, None, None, None)


def test_groups_are_paired_within_themselves() -> None:
    right = judge(TRUE, NEW, range(20))
    wrong = right.copy()
    wrong["right"][:10] = False
    groups = {"first": np.arange(20) < 10, "rest": np.arange(20) >= 10, "none": np.zeros(20, bool)}
    row = scored("x", 4, wrong, groups, right)
    assert row.against is not None
    assert (row.against.lost, row.against.won) == (10, 0)
    assert {name: share.share for name, share in row.groups.items()} == {"first": 0, "rest": 1}
    assert row.groups_against["rest"].lost == 0
    assert row.std is None


def test_the_shipped_student_draws_at_its_own_levels() -> None:
    """As its README says; with other noise, or without T5, its verdicts are kept apart."""
    one = builtin()
    assert one.levels == pytest.approx((1, 0.9, 0.75, 0.5, 0))
    assert one.steps == 4
    others = [
        one.named("x", seed=1),
        one.named("x", without_t5=True),
        one.named("x", guidance=2.0),
        one.named("x", levels=(1.0, 0.0)),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
    assert one.named("another name").digest == one.digest
    records = judge(one, OLD, range(12))
    assert records["right"].mean() >= 0.5  # .834 of 1000
    assert records["std"].min() > 0.5
