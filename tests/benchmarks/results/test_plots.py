from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results.plots import heat_map
from quantization.errors import InputError

HEAD = "component,weight,scheme,bytes,relative_time,predicted_mean_square,chosen\n"


def sensitivities(folder: Path, blocks: int) -> Path:
    lines = [
        f"transformer,transformer_blocks.{i}.attn.to_{part}.weight,{scheme},8,1,{error},{int(scheme == 'int8')}\n"
        for i in range(blocks)
        for part in "qkv"
        for scheme, error in (("int8", 1e-6), ("int4g32", 1e-4))
    ]
    (folder / "sensitivity.csv").write_text(HEAD + "".join(lines))
    return folder


def test_layers_by_schemes(tmp_path: Path) -> None:
    """Every layer while they are few; the worst scheme on the left."""
    drawing = heat_map(sensitivities(tmp_path, 2))
    assert drawing.count("transformer: transformer_blocks.") == 6
    assert drawing.index("int4g32") < drawing.index("int8")


def test_many_layers_are_summed_by_block(tmp_path: Path) -> None:
    drawing = heat_map(sensitivities(tmp_path, 20))
    assert drawing.count("transformer: transformer_blocks.") == 20
    assert "to_q" not in drawing


BAD = {"no file": None, "empty": HEAD, "other columns": "a,b\n1,2\n", "no number": HEAD + "a,b,int8,1,1,x,0\n"}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_table(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "sensitivity.csv").write_text(content)
    with pytest.raises(InputError, match="--tuned"):
        heat_map(tmp_path)
