"""What a browser bundle's page runs on: onnxruntime-web and the tokenizers library, from npm, at pinned versions.

They are not part of this package (41 MB). ``npm ci`` checks what it fetches against the hashes of ``npm/package-lock.json``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from deploy.errors import Complaint, InputError
from quantization.files import write_text
from quantization.folders import new_folder, real_place

FILES = {
    "onnxruntime-web/dist/ort.wasm.min.mjs": "onnxruntime-web/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs": "onnxruntime-web/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "onnxruntime-web/ort-wasm-simd-threaded.wasm",
    "onnxruntime-web/dist/ort.webgpu.min.mjs": "onnxruntime-web/ort.webgpu.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs": "onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm": "onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm",
    "onnxruntime-web/package.json": "onnxruntime-web/package.json",  # the licence; a copyright line heads each script
    "@huggingface/tokenizers/dist/tokenizers.min.mjs": "tokenizers/tokenizers.min.mjs",
    "@huggingface/tokenizers/LICENSE": "tokenizers/LICENSE",
    "@huggingface/tokenizers/package.json": "tokenizers/package.json",
}
"""Path under ``node_modules`` to path in the bundle's vendor folder.

The WebGPU build is the one that unwinds by asyncify: the smaller one needs JavaScript promise integration, which fewer browsers
have. onnxruntime-web's default build is an older WebGPU provider that cannot load these graphs.
"""

INSTALL = "flash-deploy web-runtime -o DIR"


def pinned() -> dict[str, str]:
    """Package name to the version that was tested."""
    content = json.loads(resources.files("deploy.page").joinpath("npm", "package.json").read_text("utf-8"))
    return dict(content["dependencies"])


def check_web_runtime(folder: Path) -> None:
    """Check that the pinned packages are in ``folder/node_modules``.

    Raises:
        InputError: a package is missing or of another version.
    """
    modules = folder / "node_modules"
    complaints = [Complaint(str(modules / path), "missing") for path in FILES if not (modules / path).is_file()]
    for name, version in pinned().items() if not complaints else ():
        if (got := _version(modules / name / "package.json")) != version:
            complaints.append(Complaint(str(modules / name), "wrong version", version, got))
    if complaints:
        raise InputError("The web runtime cannot be used.", complaints, f"`{INSTALL}` makes a folder with all of it")


def fetch_web_runtime(folder: Path) -> None:
    """Install the pinned packages with npm and keep what a page needs of them, in ``folder/node_modules``.

    npm's own configuration says which registry it asks. No package's scripts are run.

    Raises:
        InputError: the folder is there, npm is not, or npm failed.
    """
    folder = real_place(folder)
    if folder.exists():
        raise InputError(f"{folder} is there already.", remedy="give another folder")
    wanted = " ".join(f"{name}@{version}" for name, version in pinned().items())
    if (npm := shutil.which("npm")) is None:
        remedy = f"install Node.js; or run `npm install --ignore-scripts {wanted}` elsewhere and copy its folder here"
        raise InputError("npm is not installed.", remedy=remedy)
    with new_folder(folder) as kept, tempfile.TemporaryDirectory(dir=kept.parent, prefix=f"{kept.name}.") as temporary:
        _install(npm, Path(temporary))
        for path in FILES:
            target = kept / "node_modules" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(temporary) / "node_modules" / path, target)
        check_web_runtime(kept)


def copy_web_runtime(folder: Path, vendor: Path) -> list[Path]:
    """Copy what a page needs from ``folder/node_modules`` into a bundle's vendor folder; returns the files."""
    targets = []
    for path, name in FILES.items():
        target = vendor / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # never through a link
        shutil.copyfile(folder / "node_modules" / path, target)
        targets.append(target)
    return targets


def _install(npm: str, folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        text = resources.files("deploy.page").joinpath("npm", name).read_text("utf-8")
        write_text(folder / name, text)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603  (a fixed command)
    if done.returncode:
        complaints = [Complaint("npm ci", line) for line in done.stderr.splitlines() if line.strip()][-5:]
        remedy = "see that npm reaches its registry (`npm ping`) and run the command again"
        raise InputError("npm could not install the web runtime.", complaints, remedy)


def _version(file: Path) -> str:
    try:
        content: Any = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"{file.name} cannot be read: {error}"
    return str(content.get("version")) if isinstance(content, dict) else "none"
