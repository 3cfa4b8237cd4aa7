"""The study as a whole, with verdicts that are scripted: whom it compares with whom, on which captions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.distilled import study as module
from benchmarks.studies.distilled.captions import Captions
from benchmarks.studies.distilled.study import Amounts, study
from benchmarks.studies.distilled.subjects import Control, Network
from benchmarks.studies.distilled.tables import markdown
from benchmarks.studies.distilled.verdicts import RECORD
from distillation.networks.drawing import teacher_levels

AMOUNTS = Amounts(prompts=60, old_prompts=20, various=30, choosing=20, scales=(1.0, 2.0, 3.0), seeds=2)


class Scripted:
    """Verdicts of which so many of ten captions are right, always the same ones."""

    def of(self, subject: Any, captions: Captions, count: int) -> np.ndarray:
        """Of 28 steps with guidance 2 most, of true pictures all."""
        records = np.zeros(count, RECORD)
        share = 100 if isinstance(subject, Control) else 30 + 10 * (subject.guidance == 2) + subject.steps
        records["right"] = np.arange(count) % 10 < share / 10
        records["places"] = np.random.default_rng([count, subject.seed]).normal(size=records["places"].shape)
        return records


class Run:
    """A run with a teacher and one student of four steps."""

    recipe = SimpleNamespace(name="scripted", stages=())

    def teacher(self) -> Network:
        return Network("teacher", "t", teacher_levels(28))

    def students(self) -> list[Network]:
        return [Network("student-4", "s", (1.0, 0.9, 0.75, 0.5, 0.0))]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    monkeypatch.setattr(
        module, "_groups", lambda run, captions, count: {"even": np.arange(count) % 2 == 0, "late": np.arange(count) > 40}
    )
    return Scripted()


def test_the_teachers_guidance_is_chosen_on_few_captions_and_the_best_asked_all(scripted: Scripted) -> None:
    facts, shown = study(Run(), scripted, AMOUNTS)  # type: ignore[arg-type]
    assert facts.best == "teacher, guidance 2"
    assert [one.name for one in shown] == ["teacher, guidance 2", "student-4"]
    counts = {one.name: one.whole.count for one in facts.new}
    assert counts["teacher, guidance 1"] == counts["teacher, guidance 3"] == AMOUNTS.choosing
    assert counts["teacher, guidance 2"] == counts["student-4"] == counts["student-4, T5 dropped"] == AMOUNTS.prompts
    rows = {one.name: one for one in facts.new}
    assert rows["teacher, guidance 2"].against is None
    for name in ("teacher, guidance 3", "student-4"):  # paired with the reference on the same captions
        against = rows[name].against
        assert against is not None
        assert against.count == counts[name]
        assert against.reference_share == pytest.approx(0.7)


def test_a_group_that_few_captions_do_not_reach_is_left_open_in_their_row_alone(scripted: Scripted) -> None:
    facts, _ = study(Run(), scripted, AMOUNTS)  # type: ignore[arg-type]
    section = markdown(facts).split("## By kind of caption\n")[1].split("##")[0]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in section.splitlines()}
    assert lines["teacher, guidance 3"].endswith("| - |")
    assert "%" in lines["student-4"].split(" | ")[2]
