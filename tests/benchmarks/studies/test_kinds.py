"""Sums over kinds of layers: every weight of a transformer is of one kind, and the table's figures are those of the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies.kinds import KINDS, felt, kind_of, main, markdown
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT

ATTENTION, FEED_FORWARD = "transformer_blocks.3.attn.to_q.weight", "transformer_blocks.3.ff.net.2.weight"


@pytest.mark.parametrize(
    ("component", "name", "kind"),
    [
        ("transformer", ATTENTION, "picture: attention"),
        ("transformer", "transformer_blocks.0.attn2.to_out.0.weight", "picture: attention"),
        ("transformer", "transformer_blocks.0.attn.to_add_out.weight", "text in the transformer: attention"),
        ("transformer", "transformer_blocks.0.attn.add_k_proj.weight", "text in the transformer: attention"),
        ("transformer", "transformer_blocks.0.norm1_context.linear.weight", "modulations"),
        ("transformer", "norm_out.linear.weight", "embedders and the last layer"),
        ("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1.weight", "CLIP"),
        ("text_encoder_3", "encoder.block.0.layer.0.SelfAttention.q.weight", "T5"),
        ("text_encoder_3", "shared.weight", None),
        ("vae", "decoder.conv_in.weight", None),
    ],
)
def test_kinds(component: str, name: str, kind: str | None) -> None:
    assert kind_of(component, name) == kind


def test_every_kind_is_one_of_the_student_s() -> None:
    student = open_student(BUILTIN_STUDENT)
    names = [(component, name) for component, weights in student.weights.items() for name in weights]
    assert {kind_of(*name) for name in names} == {*KINDS, None}


def rows() -> list[dict[str, str]]:
    figures = {
        ATTENTION: {"fp16": (200, 0.0), "int4g32": (60, 0.7), "int8g128": (110, 0.1)},
        FEED_FORWARD: {"fp16": (400, 0.0), "int4g32": (120, 0.14), "int8g128": (220, 0.01)},
        "transformer_blocks.4.ff.net.2.weight": {"fp16": (400, 0.0), "int4g32": (120, 0.14), "int8g128": (220, 0.01)},
        "pos_embed.proj.weight": {"fp16": (400, 0.0)},
    }
    return [
        {"component": "transformer", "weight": weight, "scheme": scheme, "bytes": str(size), "predicted_mean_square": str(error)}
        for weight, schemes in figures.items()
        for scheme, (size, error) in schemes.items()
    ]


def test_sums() -> None:
    found = felt(rows(), "int4g32", "int8g128")
    assert found["picture: attention"] == (200, 0.7, pytest.approx(0.7 / 140), 0.1)
    assert found["picture: feed-forward"] == (800, 0.28, pytest.approx(0.28 / 560), 0.02)
    assert list(found) == ["picture: attention", "picture: feed-forward"]
    assert (
        markdown(found, "int4g32", "int8g128")
        .splitlines()[3]
        .startswith("| picture: feed-forward | 400 | 2.8e-01 | 5.0e-04 | 0.1 |")
    )


def test_a_report_of_other_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sensitivity.csv"
    file.write_text("component,weight,scheme,bytes,relative_time,predicted_mean_square,chosen\n")
    monkeypatch.setattr("sys.argv", ["kinds", str(file)])
    with pytest.raises(SystemExit, match="no weights of a transformer in int4g32"):
        main()
