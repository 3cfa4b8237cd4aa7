from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distillation.random_students import PRESETS, make_student, preset_shape
from exporters.errors import ExportError
from exporters.student.open import open_student
from exporters.student.weights.templates import expected_shapes
from quantization.errors import InputError

TINY = PRESETS["tiny"]


def test_same_seed_same_student(tmp_path: Path) -> None:
    digests = [
        hashlib.sha256(
            (make_student(TINY, tmp_path / name, seed) / "vae/diffusion_pytorch_model.safetensors").read_bytes()
        ).hexdigest()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_positions_are_diffusers(tmp_path: Path) -> None:
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    student = open_student(make_student(TINY, tmp_path / "s"))
    expected = get_2d_sincos_pos_embed(48, 12, base_size=8, output_type="pt").float().numpy()
    got = student.weights["transformer"]["pos_embed.pos_embed"].load()[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)  # sines of the same angles, in fp64 here


def test_full_size_is_sd35_medium() -> None:
    from distillation.random_students import configs_of

    count = {
        component: sum(int(np.prod(shape)) for shape in expected_shapes(component, config).values())
        for component, config in configs_of(PRESETS["full"]).items()
    }
    # Published files, two bytes a parameter: transformer 4.94 GB, CLIP-L 247 MB, CLIP-G 1.39 GB, VAE 168 MB, T5 9.52 GB.
    assert count["transformer"] == pytest.approx(2.47e9, rel=0.002)
    assert count["text_encoder"] == pytest.approx(123.65e6, rel=0.001)
    assert count["text_encoder_2"] == pytest.approx(694.66e6, rel=0.001)
    assert count["text_encoder_3"] == pytest.approx(4.762e9, rel=0.001)
    assert count["vae"] == pytest.approx(83.8e6, rel=0.002)


def test_full_tiny_vae_is_taesd3() -> None:
    from distillation.random_students import configs_of

    config = configs_of(preset_shape("full", tiny_decoder=True))["vae"]
    tensors = expected_shapes("vae", config)
    decoder = sum(int(np.prod(shape)) for name, shape in tensors.items() if name.startswith("decoder."))
    # TAESD's decoder (github.com/madebyollin/taesd) has 1,222,531 parameters of 4 latent channels; each channel more has 64 x 9.
    assert decoder == 1_222_531 + 12 * 64 * 9


def test_presets_have_a_tiny_vae_of_their_own() -> None:
    widths = {name: preset_shape(name, tiny_decoder=True).tiny_vae for name in PRESETS}
    assert widths["tiny"] != widths["mid"] == widths["full"]
    assert all(preset_shape(name).tiny_vae is None for name in PRESETS)


@pytest.mark.parametrize("changes", [{"t5": None}, {"layers": 1, "dual_layers": 0}, {"qk_norm": False, "dtype": "bf16"}], ids=str)
def test_any_shape_opens(changes: dict, tmp_path: Path) -> None:
    open_student(make_student(replace(TINY, **changes), tmp_path / "s"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("s", "link"):
        with pytest.raises(ExportError, match="is there already"):
            make_student(TINY, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "s"]


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / ".s.partial").symlink_to("home")
    assert not make_student(TINY, tmp_path / "s").is_symlink()
    assert list((tmp_path / "home").iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distillation.random_students._write_rest", full)
    with pytest.raises(InputError, match=r"s cannot be written[\s\S]*No space left on device[\s\S]*free some space"):
        make_student(TINY, tmp_path / "above" / "s")
    assert list(tmp_path.iterdir()) == []
