"""The study of quantization in the loop, of a run whose networks have learned next to nothing."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import in_the_loop
from benchmarks.studies.distilled.run_folder import RunFolder
from benchmarks.studies.in_the_loop import Drawn, Stage, rows, ways
from exporters.reference.decibels import snr_db
from quantization.errors import InputError
from quantization.profile import load_profile
from quantization.schemes import parse_scheme


@pytest.fixture(scope="module")
def stage(shapes_run: Path) -> Stage:
    return Stage(RunFolder(shapes_run), "w4")


def test_every_way_costs_as_much_and_is_measured(stage: Stage) -> None:
    """4 bits and a scale of 32 for 64 weights: 4.5; a little more where rows are no whole blocks, or blocks have zero points.

    The profile is a mixture, chosen for twice as many layers."""
    name = in_the_loop._uniform(stage).name
    assert name in ("int4g64", "uint4g64")
    told = list(rows(stage, 2, 1))
    assert [row[0] for row in told] == [
        "as it entered, fp32",
        f"{name}, rounded to nearest",
        f"{name}, searched scales or tables",
        f"{name}, calibrated, error feedback",
        "calibrated, searched mixture",
        "learned in the loop",
    ]
    (entered, *others), learned = told, told[-1]
    assert entered[2] == entered[4] == ""
    bits = [float(row[1]) for row in others]
    assert 4.5 <= bits[0] < 4.75
    assert all(abs(one - bits[0]) < 0.25 for one in bits)
    assert all(10 < float(row[column]) < math.inf for row in others for column in (2, 4))
    assert float(learned[1]) == pytest.approx(stage.bits(stage.size_bytes), abs=0.005)


def test_what_is_stored_is_what_draws(stage: Stage) -> None:
    """Its own weights change nothing, others do."""
    own = stage.drawn(stage.entered, {}, 2)
    same = stage.drawn(stage.entered, stage.weights, 2)
    key = ("transformer", "proj_out.weight")
    other = stage.drawn(stage.entered, {key: 10 * stage.weights[key]}, 2)
    assert snr_db(own.latents[True], same.latents[True]) == math.inf
    assert snr_db(own.latents[True], other.latents[True]) < 60
    assert not np.array_equal(own.latents[True], own.latents[False])


def test_what_no_bundle_multiplies_by_is_stored_all_the_same(stage: Stage) -> None:
    sensitivities = stage.sensitivities(1)
    missing = {key[1] for key in stage.weights} - {key[1] for key in sensitivities}
    assert {name for name in missing if name.startswith("time_text_embed.timestep_embedder.")}
    assert all(set(stored) == set(stage.weights) for _, _, stored in ways(stage, sensitivities))


def test_a_mixture_is_a_profile_of_no_more_bytes(stage: Stage, tmp_path: Path) -> None:
    """A stage that learns to be stored by it is compared with one scheme in as many bytes."""
    file = tmp_path / "mixed.toml"
    in_the_loop.main([str(stage.run.folder), "--calibration-prompts", "1", "--mixture", str(file)])
    profile = load_profile(file)
    schemes = {key: profile.scheme(*key) for key in stage.weights}
    assert len(set(schemes.values())) > 1
    mixed = copy.copy(stage)
    mixed.profile, mixed.schemes = profile, schemes
    assert 0.98 * stage.size_bytes < mixed.size_bytes <= stage.size_bytes
    uniform = copy.copy(stage)
    uniform.schemes = dict.fromkeys(stage.schemes, parse_scheme("int4g64"))
    assert in_the_loop._uniform(uniform).name == "int4g64"
    assert in_the_loop._uniform(mixed).name in ("int4g64", "uint4g64")


def test_a_mixture_is_of_one_stage(shapes_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        in_the_loop.main([str(shapes_run), "--stage", "w4", "--stage", "w4", "--mixture", str(tmp_path / "mixed.toml")])
    assert "--mixture: is of one stage" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["follow-4", "w5"])
def test_what_quantizes_nothing_is_refused(shapes_run: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: no stage of kind quantize \\(expected w4"):
        Stage(RunFolder(shapes_run), name)


def test_a_row_counts_pictures_that_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_the_loop, "snr_db", lambda truth, got: 12.34)
    latents = {True: np.zeros(1), False: np.zeros(1)}
    before = np.array([True, True, False, False])
    truth = Drawn(latents, {True: before, False: before})
    drawn = Drawn(latents, {True: np.array([False, True, True, True]), False: before})
    row = in_the_loop._row("a way", "4.50", truth, drawn)
    assert row[:3] == ("a way", "4.50", "12.3")
    assert re.fullmatch(r"75.0 %, \+25.0 \(-\d+.\d to \+\d+.\d\): 1 lost, 2 won", row[3])
    assert re.fullmatch(r"50.0 %, \+0.0 \(-\d+.\d to \+\d+.\d\): 0 lost, 0 won", row[5])
