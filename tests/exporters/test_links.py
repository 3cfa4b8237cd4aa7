from __future__ import annotations

from pathlib import Path

from exporters.links import is_own


def test_a_folder_owns_what_is_in_it_and_in_its_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    bundle = repository / "snapshots" / "abc" / "phone"
    (repository / "blobs").mkdir(parents=True)
    bundle.mkdir(parents=True)
    for file in (repository / "blobs" / "0123", tmp_path / "secret", bundle.parent / "beside", bundle / "inside"):
        file.touch()
    links = {
        "blob": ("../../../blobs/0123", True),
        "within": ("inside", True),
        "out": (str(tmp_path / "secret"), False),
        "sideways": ("../beside", False),
        "refs": ("../../../blobs/../refs/main", False),
    }
    for name, (target, _) in links.items():
        (bundle / name).symlink_to(target)
    (bundle / "loop").symlink_to("loop")
    assert {name: is_own(bundle / name, bundle) for name in links} == {name: own for name, (_, own) in links.items()}
    is_own(bundle / "loop", bundle)  # ends
    elsewhere = tmp_path / "a" / "b" / "bundle"
    elsewhere.mkdir(parents=True)
    (tmp_path / "a" / "blobs").mkdir()
    (elsewhere / "x").symlink_to(tmp_path / "a" / "blobs")
    assert not is_own(elsewhere / "x", elsewhere)
