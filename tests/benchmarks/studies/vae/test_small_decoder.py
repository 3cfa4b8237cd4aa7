"""The study of a small decoder: the VAE itself costs nothing, a decoder that has learned nothing costs everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies.vae import small_decoder
from benchmarks.studies.vae.small_decoder import compare
from distillation.random_students import make_student, preset_shape
from exporters.student.student import BUILTIN_STUDENT


def test_the_vae_itself() -> None:
    same = compare(BUILTIN_STUDENT, BUILTIN_STUDENT, 3)
    assert same.psnr_db.min() > 100
    assert (same.right.lost, same.right.won, same.right.difference) == (0, 0, 0)
    assert same.multiplications[0] == same.multiplications[1] > 1e8


def test_a_decoder_that_has_learned_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_student(preset_shape("tiny", tiny_decoder=True), tmp_path / "other")
    compared = compare(BUILTIN_STUDENT, other, 4)
    assert compared.psnr_db.max() < 20
    assert compared.right.share == 0 < compared.right.reference_share
    vae, small = compared.multiplications
    assert 0 < small < vae
    small_decoder.main([str(other), "--prompts", "2"])
    assert "right: 0.0%" in capsys.readouterr().out


def test_no_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        small_decoder.main([str(tmp_path)])
    assert "error" in capsys.readouterr().err
