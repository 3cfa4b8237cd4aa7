"""LoRAs that are merged into a teacher: told to every process, merged where a teacher is opened, part of what a run is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distillation.run.lineage import Lineage
from distillation.run.order import Order
from distillation.run.outcome.publish import _card
from distillation.run.plan import plan
from exporters.errors import InputError
from exporters.student.open import open_student
from exporters.student.weights.lora.source import Lora, parse_lora
from tests.helpers import lora_files as files


@pytest.fixture
def ordered(given: Path, tmp_path: Path) -> Order:
    teacher = open_student(given / "teacher")
    its = files.halves(teacher, "text_encoder", "text_projection", 2, np.random.default_rng(0))
    file = files.write(tmp_path / "turbo.safetensors", files.diffusers({("text_encoder", "text_projection"): its}))
    return Order(str(given / "recipe.toml"), given / "teacher", tmp_path / "run", lora=(Lora(file, 0.25),))


def test_every_process_is_told(ordered: Order) -> None:
    told = ordered.arguments()
    assert parse_lora(told[told.index("--lora") + 1]) == ordered.lora[0]
    assert "--lora" not in replace(ordered, lora=()).arguments()


def test_a_teacher_is_another_with_it(ordered: Order) -> None:
    with_it, without = ordered.open_teacher(), replace(ordered, lora=()).open_teacher()
    assert with_it is not None
    assert without is not None
    assert with_it.fingerprint() != without.fingerprint()  # which every stage's identity begins with
    name = "text_projection.weight"
    (config, tensors), (_, plain) = (Lineage(base, (), 7).stored("text_encoder") for base in (with_it, without))
    assert tensors.keys() == plain.keys()
    for key, (shape, read) in tensors.items():
        values = np.concatenate(list(read())).reshape(shape)
        assert np.array_equal(values, with_it.weights["text_encoder"][key].load())
        assert np.array_equal(values, np.concatenate(list(plain[key][1]())).reshape(shape)) == (key != name)
    assert config["projection_dim"] == tensors[name][0][0]


def test_a_dry_run_opens_it_too(ordered: Order) -> None:
    missing = replace(ordered, lora=(Lora(Path("nowhere.safetensors")),))
    with pytest.raises(InputError, match=r"The LoRA nowhere.safetensors does not exist"):
        plan(missing)


def test_the_card_says_what_a_student_was_made_from(ordered: Order) -> None:
    recipe = ordered.read()
    student = recipe.students[0]
    lineage = Lineage(ordered.open_teacher(), (), 7)
    assert "from teacher with turbo.safetensors at scale 0.25" in _card(recipe, student, recipe.stage(student.stage), lineage, {})


def test_without_a_teacher_there_is_nothing_to_merge_it_into() -> None:
    with pytest.raises(InputError, match=r"--lora: no teacher is given \(expected a TEACHER to merge it into, got x\)"):
        Order("shapes-cpu", None, Path("run"), lora=(Lora(Path("x")),))


def test_components_from_elsewhere_are_told_and_taken(given: Path, tmp_path: Path) -> None:
    order = Order(str(given / "recipe.toml"), given / "teacher", tmp_path / "run", components={"vae": given / "teacher" / "vae"})
    told = order.arguments()
    assert told[told.index("--component") + 1] == f"vae={given / 'teacher' / 'vae'}"
    teacher = order.open_teacher()
    assert teacher is not None
    assert teacher.elsewhere.keys() == {"vae"}
    with pytest.raises(InputError, match=r"--vae: no teacher is given \(expected a TEACHER that it is of, got x\)"):
        Order("shapes-cpu", None, tmp_path / "run", components={"vae": Path("x")})
