"""The page of a bundle: every word of it, and that neither foreign text nor foreign files come to harm through it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from deploy.build.verify import verify
from deploy.bundle.folder import Bundle, open_bundle
from deploy.bundle.manifest import ClientScheduleRecord, FileRecord
from deploy.card.files import CardFiles
from deploy.card.licences import Licence, find_licence
from deploy.card.text import Sample, default_place, escaped, page
from deploy.errors import InputError
from tests.helpers.command import flash_deploy
from tests.helpers.hub import hub_cache
from tests.helpers.kept_bundle import V1

SAMPLES = (Sample("card/0.png", "a cat", 3),)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(Path(shutil.copytree(V1, tmp_path / "bundle")))


def with_(bundle: Bundle, **changes: Any) -> Bundle:
    """Another bundle, so far as its manifest goes."""
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, **changes))


def of_student(bundle: Bundle, **changes: Any) -> Bundle:
    return with_(bundle, student=msgspec.structs.replace(bundle.manifest.student, **changes))


def test_the_whole_page(bundle: Bundle) -> None:
    done = flash_deploy("card", bundle.folder, "--prompt", "a cat", "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(bundle.folder / "README.md"), str(bundle.folder / "card" / "0.png")]
    assert (bundle.folder / "README.md").read_text("utf-8") == V1.with_suffix(".md").read_text("utf-8")
    from PIL import Image

    with Image.open(bundle.folder / "card" / "0.png") as picture:  # what the page says how to draw
        drawn = np.load(V1.with_suffix(".npy"))[0]
        assert np.abs(np.asarray(picture, np.float32) / 255 - drawn).max() < 0.01
    assert verify(bundle.folder).complaints == []
    before = (bundle.folder / "README.md").stat().st_mtime_ns
    done = flash_deploy("card", bundle.folder, "--prompt", "a dog")
    assert (done.returncode, "README.md: is there already" in done.stderr) == (2, True)
    assert (bundle.folder / "README.md").stat().st_mtime_ns == before
    done = flash_deploy("card", bundle.folder, "--force", "--pictures", 0)
    assert done.stdout.split() == [str(bundle.folder / "README.md")]
    assert list((bundle.folder / "card").iterdir()) == []  # the older page's


def test_it_needs_no_torch(bundle: Bundle) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['flash-deploy', 'card', {str(bundle.folder)!r}, '--pictures', '1']\n"
        "from deploy.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "sys.exit(str([name for name in ('torch', 'diffusers', 'onnx_ir', 'onnx') if name in sys.modules] or ''))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1:] in ([], [""]), done.stderr
    assert (bundle.folder / "README.md").is_file()


def test_what_a_hub_is_told(bundle: Bundle) -> None:
    own = of_student(bundle, licences={"LICENSE": "Apache License\nVersion 2.0, January 2004", "NOTICE": "by hand"})
    text = page(own, base_models=["org/SD3.5-Large"])
    assert text.startswith("---\nlicense: apache-2.0\npipeline_tag: text-to-image\n")
    assert 'base_model:\n- "org/SD3.5-Large"\n' in text or "base_model:\n- org/SD3.5-Large\n" in text
    assert "## Licence\n\nThe student's texts, which hold for the bundle too: LICENSE, NOTICE. Recognised as apache-2.0." in text
    text = page(of_student(bundle, licences={"LICENSE.md": "STABILITY AI COMMUNITY LICENSE AGREEMENT ..."}))
    assert 'license: other\nlicense_name: stabilityai-ai-community\nlicense_link: "LICENSE.md"\n' in text
    assert page(bundle, licence="mit").startswith("---\nlicense: mit\n")
    assert 'tags:\n- flash-deploy\n- onnx\n- stable-diffusion-3\n- few-step\n- "no"\n' in page(with_(bundle, tier="no"))


def test_what_newer_manifests_say(bundle: Bundle) -> None:
    graphs = [msgspec.structs.replace(graph, parity_cases=6, parity_db=999.0) for graph in bundle.manifest.graphs]
    graphs[1] = msgspec.structs.replace(graphs[1], parity_db=None)
    text = page(
        with_(
            bundle,
            graphs=tuple(graphs),
            notes=("Guidance is off.",),
            requires={"onnxruntime": "1.24"},
            client_schedule=ClientScheduleRecord(steps=2, shift=3.0, timesteps=(1000.0, 8.9), scales=(0.5, 28.0)),
            profile=bundle.manifest.profile * 14,
        )
    )
    assert "| text\\_encoder | 36,096 | 0.12 MB | 0.22 MB | equal, 6 inputs |\n" in text
    assert "| conditioner | 4,381 | 0.01 MB | 0.03 MB | not measured |\n" in text
    assert "\n## Notes\n\n- Guidance is off.\n" in text
    assert "| runs with | onnxruntime 1.24 or newer |\n" in text
    assert "| stepCount 2, schedulerTimestepShift 3 |\n" in text
    assert text.count("| \\* | \\* | fp16 |") == 12
    assert "\nAnd 2 more in `manifest.json`.\n" in text


def test_foreign_text_is_no_markup(bundle: Bundle) -> None:
    evil = "](http://evil) | <script>alert(1)</script>\n---\n# *mine*\x1b[2J"
    licences = {"LICENSE": "as you like"}
    text = page(
        of_student(with_(bundle, notes=(evil,), tier=evil), name=evil, licences=licences), [Sample("card/0.png", evil, 0)]
    )
    assert not any(line.startswith(("# *", "# mine", "<")) for line in text.splitlines())
    assert text.count("\n---\n") == 1  # the head's end
    fenced = "\n".join(part for i, part in enumerate(text.split("```")) if i % 2 == 0).split("\n---\n")[1]
    assert "<script" not in fenced.replace("\\<", "")
    assert "](http" not in fenced.replace("\\]", "")
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if line.startswith("| !["))
    assert row.replace("\\|", "").count("|") == 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SD3.5-Flash 1.2", "SD3.5-Flash 1.2"),
        ("- a", r"\- a"),
        ("1) a", r"1\) a"),
        ("0.30 MB", "0.30 MB"),
        ("a_b `c` $x$ &amp; ~~d~~ !e @f", r"a\_b \`c\` \$x\$ \&amp; \~\~d\~\~ \!e \@f"),
        ("www.x.org ftp://x", r"www\.x.org ftp\://x"),
        ("back\\slash", r"back\\slash"),
        ("\udcff", r"\\udcff"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_licences_that_are_known() -> None:
    texts = {
        "mit": "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy",
        "openrail++": "CreativeML Open RAIL++-M License dated July 26, 2023",
        "cc-by-nc-4.0": "Creative Commons\nAttribution-NonCommercial 4.0 International",
        "cc-by-4.0": "Attribution 4.0 International",
        "gpl-3.0": "GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007",
    }
    assert {name: find_licence({"LICENSE": text}).id for name, text in texts.items()} == {name: name for name in texts}
    assert find_licence({}) == Licence("other")
    assert find_licence({"LICENSE": texts["mit"], "LICENSE-2": texts["cc-by-4.0"]}) == Licence("other", file="LICENSE")


def swift(bundle: Bundle) -> Bundle:
    """A bundle with a README.md of its own, which hubs show already."""
    (bundle.folder / "README.md").write_text("for Apple's client")
    record = FileRecord(path="README.md", size_bytes=18, sha256="0" * 64)
    return with_(bundle, files=(*bundle.manifest.files, record), layout="swift")


def test_a_bundles_own_page_stays(bundle: Bundle, tmp_path: Path) -> None:
    own = swift(bundle)
    assert default_place(bundle) == bundle.folder / "README.md"
    assert default_place(own) == tmp_path / "bundle.card.md"
    files = CardFiles(own, default_place(own), 2, force=False)
    assert [path.relative_to(tmp_path).as_posix() for path in files.pictures] == [f"card/bundle-card-{i}.png" for i in (0, 1)]
    assert "the bundle's `README.md` says how" in page(own)
    with pytest.raises(InputError, match=r"-o: is the bundle's own \(expected a file outside of the bundle"):
        CardFiles(own, own.folder / "README.md", 0, force=True)


BAD_PLACES = {
    "manifest.json": r"-o: is in the bundle, of which `verify` would complain \(expected README.md, or a file outside",
    "card/x.md": r"-o: is in the bundle",
    "no/README.md": r"-o: is in the bundle",
    "../no/README.md": r"-o: no such folder",
    "../link/../bundle/page.md": r"-o: is in the bundle",
}


@pytest.mark.parametrize(("place", "message"), BAD_PLACES.items())
def test_places_that_no_page_may_have(place: str, message: str, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    with pytest.raises(InputError, match=message):
        CardFiles(bundle, bundle.folder / place, 1, force=True)


def test_pictures_of_a_page_beside_do_not_go_into_a_bundle(tmp_path: Path) -> None:
    bundle = open_bundle(Path(shutil.copytree(V1, tmp_path / "card")))
    with pytest.raises(InputError, match="would have the page's pictures, and is in the bundle"):
        CardFiles(bundle, tmp_path / "page.md", 1, force=False)


def test_what_fails_leaves_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    files = CardFiles(bundle, default_place(bundle), 1, force=False)
    monkeypatch.setattr("deploy.card.files.write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write("text", [np.zeros((16, 16, 3), np.float32)])
    assert not (bundle.folder / "card").exists()
    assert verify(bundle.folder).complaints == []


def test_a_bundle_in_a_hub_cache_has_its_page_too(tmp_path: Path) -> None:
    folder = hub_cache(V1, tmp_path / "hub")
    done = flash_deploy("card", folder, "-o", tmp_path / "page.md", "--pictures", 1)
    assert done.stdout.split() == [str(tmp_path / "page.md"), str(tmp_path / "card" / "page-0.png")]
    assert "(card/page-0.png)" in (tmp_path / "page.md").read_text()


BAD_CALLS = {
    "two sources": (["--prompt", "x", "--prompts", "p"], "--prompts: disagrees with --prompt"),
    "too many": (["--prompt", "x", "--pictures", "2"], "--pictures: more than there are prompts (expected at most 1, got 2)"),
    "no model": (["--base-model", "mine"], "--base-model: is no name of a model (expected ORGANISATION/NAME, got mine)"),
    "no licence": (["--license", "My own"], "--license: is no name of a licence"),
    "no runtime": (["--runtime", "coreml"], "--pictures 0 writes the page without pictures"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(arguments: list[str], message: str, bundle: Bundle) -> None:
    before = sorted(bundle.folder.rglob("*"))
    done = flash_deploy("card", bundle.folder, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert sorted(bundle.folder.rglob("*")) == before


def test_the_head_is_yaml(bundle: Bundle) -> None:
    yaml = pytest.importorskip("yaml")
    own = of_student(bundle, licences={"LICENSE: x": 'say "no"'})
    head = yaml.safe_load(page(with_(own, tier='"\\: #'), base_models=["a/b"]).split("---\n")[1])
    assert (head["license"], head["license_link"], head["base_model"]) == ("other", "LICENSE: x", ["a/b"])
    assert head["tags"] == ["flash-deploy", "onnx", "stable-diffusion-3", "few-step", '"\\: #']
    assert json.dumps(head)
