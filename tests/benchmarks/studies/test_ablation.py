from __future__ import annotations

from itertools import groupby

import numpy as np
import torch

from benchmarks.studies.ablation import EQUALISED, _Measured, techniques
from benchmarks.studies.weights.trial import Trial
from exporters.reference.decibels import snr_db
from exporters.streamed.module import Substitute
from exporters.student.student import Student
from quantization.sensitivity import Sensitivity

RNG = np.random.default_rng(0)
KEY = ("transformer", "transformer_blocks.0.attn.to_q.weight")


def test_techniques_buy_what_the_table_says() -> None:
    """Of a product with inputs of many sizes: error feedback is the best of every scheme, and no worse for equalised inputs."""
    x = (RNG.standard_normal((400, 96)) @ RNG.standard_normal((96, 96)) * np.geomspace(0.1, 10, 96)).astype(np.float32)
    weight = (RNG.standard_t(4, (64, 96)) / 10).astype(np.float32)
    gram = x.T @ x
    sensitivity = Sensitivity(np.ones(64), 64 * np.diag(gram), {}, gram)

    def db(substitute: Substitute) -> float:
        inputs = torch.from_numpy(x)[None]
        rounded = inputs if substitute.round_input is None else substitute.round_input(inputs)
        return snr_db(x @ weight.T, rounded[0].numpy() @ substitute.weight().T)

    measured = [(scheme, name, db(technique(KEY, weight, sensitivity))) for scheme, name, technique in techniques()]
    for _, group in groupby(measured, key=lambda row: row[0]):
        rows = [(value, name) for _, name, value in group if not name.startswith(EQUALISED)]
        assert max(rows)[1] == "error feedback"
    without = {scheme: value for scheme, name, value in measured if name == "error feedback"}
    assert all(value > without[scheme] for scheme, name, value in measured if name == f"{EQUALISED} 0.5")


def test_the_denoiser_is_measured_where_the_student_leads_it(students: dict[str, Student]) -> None:
    """With its own weights nothing differs; with one of them off by a thousandth something does, and little."""
    with torch.no_grad():
        trial = Trial.of(students["tiny"], 64)
        measured = _Measured(trial, 2)
        weight = trial.student.weights[KEY[0]][KEY[1]].load()
        assert measured.decibels({}) == float("inf")
        assert 60 < measured.decibels({KEY: Substitute(lambda: weight * np.float32(1.001))}) < 120


def test_only_wanted_products_are_calibrated(students: dict[str, Student]) -> None:
    sensitivities = Trial.of(students["tiny"], 64).products(["a red circle"], lambda name: ".attn.to_q." in name)
    assert list(sensitivities) == [("transformer", f"transformer_blocks.{i}.attn.to_q.weight") for i in (2, 1, 0)]
