"""The examples of docs/run-in-an-app.md, taken from the page and run: they draw what ``Pipeline.generate`` draws."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from deploy.build.request import BuildRequest
from deploy.build.run import build
from deploy.bundle.folder import Bundle
from deploy.runtime.eight_bit import to_8_bit
from deploy.runtime.pipeline import Pipeline
from exporters.reference.decibels import psnr_db
from exporters.student.student import Student
from tests.docs.pages import ROOT, block_of
from tests.helpers.builds import small

PAGE = "docs/run-in-an-app.md"
PROMPT = "a red circle left of a blue square on a white background"
PROMPTS = {"usual": PROMPT, "too long": "Two GREEN triangles, and " * 9, "empty": "", "other letters": "ein Würfel, 赤い丸 & 🙂"}
# WebAssembly's kernels round elsewhere than x86's (2^-24 each, -144 dB) through a hundred layers, four steps and the VAE, in
# graphs that compute in fp32 (tests/deploy/page/test_browser.py). A wrong token, sigma or noise leaves less than 30 dB.
REQUIRED_DB = 90
DRAW_IN_NODE = """
import { draw } from "./draw.mjs";
const { data, ...size } = await draw(process.argv[1], process.argv[2], Number(process.argv[3]));
const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64");
process.stdout.write(JSON.stringify({ ...size, bytes }), () => process.exit());
"""


@pytest.fixture(scope="module")
def renoise_bundle(students: dict[str, Student], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another shape: T5, a picture that is not square, fresh noise in each step."""
    return build(
        BuildRequest(
            output=tmp_path_factory.mktemp("renoise") / "b",
            student=students["tiny"].path,
            precision="fp32",
            sampler="renoise",
            height=48,
            width=64,
            keep_t5=True,
            max_sequence_length=9,
            parity="never",
        )
    )


@pytest.fixture(scope="module")
def guided_bundle(students: dict[str, Student], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Steps that look back, of which some are guided."""
    return build(
        small(
            students,
            tmp_path_factory.mktemp("guided") / "b",
            sampler="dpmpp",
            steps=4,
            guidance_scale=4.5,
            negative_prompt="a cat",
            guidance_interval=(0.3, 0.9),
        )
    )


@pytest.fixture(scope="module", params=["builtin", "renoise"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    built: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    return built


def drawn(bundle: Bundle, prompt: str, seed: int) -> np.ndarray:
    return Pipeline(bundle, runtime="onnxruntime").generate(prompt, seed)[0]


@pytest.fixture(scope="module")
def draw_py(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    file = tmp_path_factory.mktemp("python") / "draw.py"
    file.write_text(block_of(PAGE, "draw.py").text, "utf-8")
    spec = importlib.util.spec_from_file_location("draw_of_the_page", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_python_draws_the_same_picture(prompt: str, bundle: Bundle, draw_py: ModuleType) -> None:
    """The same sums in the same order in the same runtime: equal to the last bit."""
    assert np.array_equal(draw_py.draw(bundle.folder, prompt, seed=7), drawn(bundle, prompt, 7))


def test_python_guides_and_looks_back(guided_bundle: Bundle, draw_py: ModuleType) -> None:
    mine, plain = draw_py.draw(guided_bundle.folder, PROMPT, seed=7), Pipeline(guided_bundle, runtime="onnxruntime")
    assert np.array_equal(mine, plain.generate(PROMPT, 7)[0])
    assert not np.array_equal(mine, plain.generate(PROMPT, 7, guidance_scale=1.0)[0])
    assert {low <= sigma <= high for low, high in [(0.3, 0.9)] for sigma in guided_bundle.manifest.sampling.sigmas[:-1]} == {
        True,
        False,
    }


def test_javascript_refuses_what_it_does_not_do(guided_bundle: Bundle, node_folder: Path) -> None:
    with pytest.raises(AssertionError, match="not in this example"):
        node(node_folder, "--input-type=module", "-e", DRAW_IN_NODE, guided_bundle.folder, PROMPT, 7)


def test_python_needs_three_packages() -> None:
    tree = ast.parse(block_of(PAGE, "draw.py").text)
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "tokenizers"}


def test_python_as_a_script_writes_a_picture(builtin_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "draw.py").write_text(block_of(PAGE, "draw.py").text, "utf-8")
    subprocess.run([sys.executable, "draw.py", builtin_bundle.folder, PROMPT], cwd=tmp_path, check=True)
    assert np.array_equal(read_ppm(tmp_path / "picture.ppm"), to_8_bit(drawn(builtin_bundle, PROMPT, 0)))


def read_ppm(file: Path) -> np.ndarray:
    head, pixels = file.read_bytes().split(b"\n", 1)
    kind, width, height, most = head.split()
    assert (kind, most) == (b"P6", b"255")
    return np.frombuffer(pixels, np.uint8).reshape(int(height), int(width), 3)


@pytest.fixture(scope="module")
def node_folder(web_runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example among the packages that it imports, as ``npm install`` would lay them."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "draw.mjs").write_text(block_of(PAGE, "draw.mjs").text, "utf-8")
    shutil.copyfile(ROOT / "deploy" / "page" / "web" / "noise.js", folder / "noise.mjs")
    modules = shutil.copytree(web_runtime / "node_modules", folder / "node_modules", copy_function=os.link)
    # What a page needs of the packages is there, and of the tokenizers that is the minified build.
    dist = modules / "@huggingface" / "tokenizers" / "dist"
    os.link(dist / "tokenizers.min.mjs", dist / "tokenizers.mjs")
    return folder


def node(folder: Path, *arguments: object) -> str:
    # The package's own build with WebAssembly beside it, not in it: the other is not among what a page needs.
    command = ["node", "--conditions=onnxruntime-web-use-extern-wasm", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("prompt", [PROMPTS["usual"], PROMPTS["too long"]], ids=["usual", "too long"])
def test_javascript_draws_the_same_picture(prompt: str, bundle: Bundle, node_folder: Path) -> None:
    answer = json.loads(node(node_folder, "--input-type=module", "-e", DRAW_IN_NODE, bundle.folder, prompt, 7))
    planes = np.frombuffer(base64.b64decode(answer["bytes"]), np.float32).reshape(3, answer["height"], answer["width"])
    assert psnr_db(drawn(bundle, prompt, 7), planes.transpose(1, 2, 0)) > REQUIRED_DB


def test_javascript_as_a_script_writes_a_picture(builtin_bundle: Bundle, node_folder: Path) -> None:
    """It ends by itself, and rounds to the same 8 bits but where a value lies between two of them."""
    node(node_folder, "draw.mjs", builtin_bundle.folder, PROMPT)
    difference = read_ppm(node_folder / "picture.ppm").astype(int) - to_8_bit(drawn(builtin_bundle, PROMPT, 0))
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference) < difference.size / 100
