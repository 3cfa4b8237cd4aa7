"""What ``[data]`` of a recipe may say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from distillation.data.settings import AnyData, FolderData, LatentsData, PromptsData, ShapesData, ShardsData


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"kind": "shapes", "count": 5, "seed": 1}, ShapesData(count=5, seed=1)),
        ({"kind": "folder", "path": "a", "resolution": 512}, FolderData(path="a", resolution=512)),
        ({"kind": "shards", "path": "a/*.tar", "resolution": 512}, ShardsData(path="a/*.tar", resolution=512)),
        ({"kind": "latents", "path": "a"}, LatentsData(path="a")),
        ({"kind": "prompts", "file": "a.txt"}, PromptsData(file="a.txt")),
    ],
)
def test_each_kind(said: dict[str, Any], meant: AnyData) -> None:
    assert msgspec.convert(said, AnyData) == meant


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"kind": "parquet", "path": "a"}, "parquet"),
        ({"path": "a"}, "missing required field `kind`"),
        ({"kind": "latents", "path": "a", "resolution": 64}, "unknown field `resolution`"),
        ({"kind": "folder", "path": "a"}, "missing required field `resolution`"),
        ({"kind": "folder", "path": "a", "resolution": 510}, "multiple of 8"),
        ({"kind": "folder", "path": "a", "resolution": 0}, ">= 8"),
        ({"kind": "folder", "path": "", "resolution": 64}, "length >= 1"),
        ({"kind": "latents", "path": "a\0b"}, "matching regex"),
        ({"kind": "shapes", "count": 0}, ">= 1"),
        ({"kind": "shapes", "seed": -1}, ">= 0"),
        ({"kind": "prompts", "file": 3}, "Expected `str`"),
    ],
)
def test_what_it_may_not_say(said: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(said, AnyData)
