from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest

from deploy.build import BuildRequest
from deploy.build.plan import plan
from deploy.bundle.folder import Bundle, check_files
from deploy.bundle.manifest import read_manifest
from deploy.errors import InputError
from deploy.page.page import check_page, write_page
from deploy.page.vendor import FILES, check_web_runtime, fetch_web_runtime, pinned
from deploy.tiers.tier import all_tiers


@pytest.fixture
def fake_runtime(tmp_path: Path) -> Path:
    """A folder with the right names and versions; nothing of it is run."""
    folder = tmp_path / "runtime"
    for path in FILES:
        file = folder / "node_modules" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("//")
    for name, version in pinned().items():
        (folder / "node_modules" / name / "package.json").write_text(json.dumps({"version": version}))
    return folder


def test_page_is_in_the_manifest(builtin_bundle: Bundle, add_page, fake_runtime: Path, tmp_path: Path) -> None:
    bundle = add_page(builtin_bundle, tmp_path / "bundle", fake_runtime)
    assert check_files(bundle) == []
    (bundle.folder / "web" / "app.js").write_text("alert()")
    assert [str(complaint).split(" (")[0] for complaint in check_files(bundle)] == ["web/app.js: content was changed"]


def test_page_refers_to_nothing_outside(tmp_path: Path) -> None:
    """No address but the page's own, and every file that it names is there."""
    paths = write_page(tmp_path, None)
    texts = {path: (tmp_path / path).read_text("utf-8") for path in paths}
    assert not [path for path, text in texts.items() if "://" in text]
    for path in ("web/app.js", "web/style.css"):
        assert f'"{path}"' in texts["index.html"]


def test_only_browser_tiers_have_pages() -> None:
    assert [name for name, tier in all_tiers().items() if tier.page] == ["browser"]


def test_what_is_still_to_be_done(builtin_bundle: Bundle, add_page, fake_runtime: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lists no page \(expected index.html, got a bundle of the tier desktop-cpu\)"):
        check_page(builtin_bundle.manifest)
    add_page(builtin_bundle, tmp_path / "without", None)
    assert "flash-deploy web-runtime" in check_page(read_manifest(tmp_path / "without"))
    add_page(builtin_bundle, tmp_path / "with", fake_runtime)
    assert check_page(read_manifest(tmp_path / "with")) == ""


@pytest.mark.parametrize(
    "request_",
    [{"tier": "desktop-cpu"}, {"tier": "browser", "layout": "optimum"}],
    ids=["another tier", "another layout"],
)
def test_runtime_without_page(request_: dict, fake_runtime: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--web-runtime: the bundle gets no page[\s\S]*leave --web-runtime out"):
        plan(BuildRequest(output=tmp_path / "b", web_runtime=fake_runtime, **request_))


def test_damaged_runtimes(fake_runtime: Path, tmp_path: Path) -> None:
    check_web_runtime(fake_runtime)
    with pytest.raises(InputError, match=r"ort.wasm.min.mjs: missing[\s\S]*flash-deploy web-runtime -o DIR"):
        plan(BuildRequest(output=tmp_path / "b", tier="browser", web_runtime=tmp_path))
    package = fake_runtime / "node_modules" / "onnxruntime-web" / "package.json"
    for content, got in (('{"version": "1.2.3"}', "1.2.3"), ("[]", "none"), ("{", "package.json cannot be read")):
        package.write_text(content)
        with pytest.raises(InputError, match=rf"onnxruntime-web: wrong version \(expected 1.30.0, got {got}"):
            check_web_runtime(fake_runtime)
    shutil.rmtree(fake_runtime / "node_modules" / "@huggingface")
    with pytest.raises(InputError, match=r"tokenizers.min.mjs: missing"):
        check_web_runtime(fake_runtime)


def test_lock_pins_what_the_package_names() -> None:
    """npm refuses a lock that disagrees; and no entry may lack its hash, or be fetched from an address of its own."""
    lock = json.loads(resources.files("deploy.page").joinpath("npm", "package-lock.json").read_text("utf-8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert lock["packages"][""]["dependencies"] == pinned()
    assert {name: packages[f"node_modules/{name}"]["version"] for name in pinned()} == pinned()
    assert all(entry["integrity"].startswith("sha512-") and "resolved" not in entry for entry in packages.values())


def test_fetching_needs_npm_and_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is there already"):
        fetch_web_runtime(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"npm is not installed[\s\S]*npm install --ignore-scripts .*onnxruntime-web@1.30.0"):
        fetch_web_runtime(tmp_path / "runtime")


def test_failure_of_npm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/bin:/usr/bin")
    with pytest.raises(InputError, match=r"npm ci: npm error code E404[\s\S]*npm ping"):
        fetch_web_runtime(tmp_path / "runtime")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin"]  # nothing is left behind
