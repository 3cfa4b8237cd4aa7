"""The page: its modules in Node.js against the Python runtime, and the page itself in a headless Chromium."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image
from tokenizers import Tokenizer

from deploy.build import BuildRequest, build
from deploy.bundle.folder import Bundle, open_bundle
from deploy.bundle.manifest import GuidanceRecord
from deploy.bundle.seal import record_file
from deploy.errors import InputError
from deploy.page.chromium import SOFTWARE_WEBGPU, BrowserError, Chromium
from deploy.page.drive import PageRequest, opened_page, run_in_browser
from deploy.runtime.eight_bit import to_8_bit
from deploy.runtime.pipeline import Pipeline
from deploy.runtime.sampler import combined, euler, inpainted, renoise, sample
from exporters.guidance import Guidance
from exporters.modulations import gates_of
from exporters.reference.decibels import psnr_db
from exporters.student.student import Student

PROMPT = "a red circle left of a blue square on a white background"
SOURCES = Path(__file__).parents[3] / "deploy" / "page" / "web"
RUN_MODULES = Path(__file__).with_name("run_modules.mjs")
# Graphs in fp32 on both sides: rounding (2^-24 each, -144 dB) through a hundred layers, four steps and the VAE. Measured: 115 to
# 139 dB. A wrong token, sigma or noise leaves less than 30.
REQUIRED_DB = 90


COMBINATIONS = [[0.9, 0.1], [0.31, 0.2, 0.49], [0.0, 0.1, -0.4, 1.3]]


@pytest.fixture(scope="session")
def node() -> str:
    executable = shutil.which("node")
    if executable is None:
        pytest.skip("Node.js is not installed")
    return executable


@pytest.fixture(scope="session")
def browser_bundle(web_runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The built-in student as the browser tier stores it: int8 and int4."""
    output = tmp_path_factory.mktemp("browser") / "b"
    return build(BuildRequest(output=output, tier="browser", web_runtime=web_runtime, vae_encoder=True))


@pytest.fixture(scope="session")
def renoise_bundle(web_runtime: Path, students: dict[str, Student], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another shape: T5, a picture that is not square, fresh noise in each step."""
    request = BuildRequest(
        output=tmp_path_factory.mktemp("browser") / "b",
        student=students["tiny"].path,
        tier="browser",
        web_runtime=web_runtime,
        precision="fp32",
        sampler="renoise",
        height=48,
        width=64,
        keep_t5=True,
        max_sequence_length=9,
        parity="never",
    )
    return build(request)


@pytest.fixture(scope="session")
def reference(browser_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The browser bundle for the Python runtime, with activations in fp32.

    onnxruntime on x86 rounds the inputs of int4 products to int8 (``accuracy_level`` 4), which WebAssembly does not.
    """
    folder = Path(shutil.copytree(browser_bundle.folder, tmp_path_factory.mktemp("reference") / "b"))
    changed = []
    for graph in browser_bundle.manifest.graphs:
        model = onnx.load(folder / graph.path, load_external_data=False)
        for attribute in (a for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"):
            attribute.i = 0
            changed.append(graph.name)
        (folder / graph.path).write_bytes(model.SerializeToString())
    assert set(changed) == {"conditioner", "denoiser"}
    files = tuple(record_file(folder, record.path) for record in browser_bundle.manifest.files)
    (folder / "manifest.json").write_bytes(msgspec.structs.replace(browser_bundle.manifest, files=files).to_json())
    return Pipeline(open_bundle(folder))


def run_modules(node: str, web_folder: Path, **request: Any) -> Any:
    command = [node, str(RUN_MODULES), str(web_folder)]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return json.loads(done.stdout)


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()


def decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32)


def pictures(node: str, bundle: Bundle, **request: Any) -> list[dict[str, Any]]:
    drawn = run_modules(node, bundle.folder / "web", call="generate", **request)
    for picture in drawn:
        planes = decoded(picture.pop("data")).reshape(3, picture["height"], picture["width"])
        picture["picture"] = planes.transpose(1, 2, 0)
    return drawn


@pytest.mark.parametrize(
    ("seed", "picture"),
    [(0, 0), (7, 3), (2**32 - 1, 0), (2**40 + 5, 1), (2**130 + 1, 2)],
    ids=["zero", "picture 3", "32 bits", "41 bits", "131 bits"],
)
def test_noise_is_numpys(seed: int, picture: int, node: str) -> None:
    """To the last bit, tails too: 60 000 numbers meet about 20 beyond the ziggurat, and odd counts split 64 random bits."""
    counts = [3, 60_000, 1]
    (got,) = run_modules(node, SOURCES, call="noise", cases=[[str(seed), picture, counts]])
    generator = np.random.default_rng([seed, picture])
    for count, drawn in zip(counts, got, strict=True):
        assert np.array_equal(decoded(drawn), generator.standard_normal(count, np.float32))


@pytest.mark.parametrize("method", ["euler", "renoise", "dpmpp"])
def test_samplers_are_pythons(method: str, node: str) -> None:
    rng, sigmas = np.random.default_rng(0), [1.0, 0.9, 0.31, 0.0]
    latents, noise = rng.standard_normal(50, np.float32), rng.standard_normal((3, 50), np.float32)

    def velocity(x: np.ndarray, step: int) -> np.ndarray:
        return x * np.float32(0.3) + np.float32(step)

    if method == "euler":
        step = euler(velocity, sigmas)
    elif method == "dpmpp":
        step = combined(velocity, sigmas, COMBINATIONS, latents)
    else:
        step = renoise(velocity, sigmas, lambda step: noise[step])
    expected = sample(step, latents, range(3))
    request: dict[str, Any] = {"method": method, "latents": encoded(latents), "sigmas": sigmas}
    request |= {"noise": [encoded(n) for n in noise], "combinations": COMBINATIONS}
    got = run_modules(node, SOURCES, call="sample", **request)
    assert got["steps"] == [0, 1, 2]
    assert np.array_equal(decoded(got["sampled"]), expected)  # the same fp32 operations in the same order
    if method == "dpmpp":  # which begins with noise
        return
    clean, mask = rng.standard_normal(50, np.float32), np.float32(rng.random(50) < 0.5)
    upon = inpainted(step, sigmas, clean, noise[0], mask)
    expected = sample(upon, latents, range(1, 3))
    request["upon"] = {"clean": encoded(clean), "noise": encoded(noise[0]), "mask": encoded(mask)}
    got = run_modules(node, SOURCES, call="sample", **request)
    assert got["steps"] == [0, 1]
    assert np.array_equal(decoded(got["sampled"]), expected)


@pytest.mark.parametrize(("layers", "dual"), [(1, []), (3, [0]), (4, [0, 1, 2, 3])])
def test_gates_are_pythons(layers: int, dual: list[int], node: str) -> None:
    config = {"num_layers": layers, "dual_attention_layers": dual}
    for left_out in ([], [0], [layers - 1], [*range(layers)]):
        got = run_modules(node, SOURCES, call="gates", blocks=config, leftOut=left_out)
        assert got == gates_of(config, left_out)


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(),
        Guidance(guidance_scale=4.5),
        Guidance(guidance_scale=3.0, guidance_interval=(0.3, 0.9), skip_guidance_layers=(1,), skip_layer_guidance_stop=0.6),
    ],
    ids=["none", "every step", "some steps"],
)
def test_guided_steps_are_pythons(guidance: Guidance, node: str) -> None:
    sigmas = [1.0, 0.9, 0.75, 0.31, 0.1, 0.0]
    got = run_modules(node, SOURCES, call="guidedSteps", guidance=dataclasses.asdict(guidance), sigmas=sigmas)
    assert [step["scale"] for step in got] == [*guidance.scales(sigmas)]
    assert [step["skips"] for step in got] == [*guidance.skips(sigmas)]


PLAIN_PROMPTS = [
    "",
    "a red circle",
    "A RED  Circle,\tleft\nof a blue square!!",
    "ein gr\u00fcner Kreis \u2014 na\u00efve cafe\u0301 \u00e9",
    "\u8d64\u3044\u5186 \U0001f534\U0001f7e6 \U0001f1e9\U0001f1ea",
    "don't can't I'LL you'RE 'S 1234567890 a_b-c",
    "word " * 50,
    "a" * 300,
    " lead and trail ",
]
NASTY_PROMPTS = [
    *PLAIN_PROMPTS,
    "<|endoftext|> a <|startoftext|> b",
    "<|ENDOFTEXT|>",
    "<|EndOfText|><|startoftext|><|STARTOFTEXT|>x",
    "!!<|StartOfText|><|StartOfText|>!",
    "<|startoftext|",
    "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03a3\u0391\u03a3, \u03a3",  # capital sigmas at the ends of words
    "\u0130stanbul I\u0307 \u0131I",  # a capital that becomes two letters
    "\u200bzero\u200dwidth\ufeff \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u00a0nbsp\u2003em\u3000ideographic\u0085next\u2028line",
    "\ufb01 \u00df \u1e9e \u01c5 \u212b \u1e9b\u0323",
    "x\x00y\x1fz\x7f \v\f\r\n",
    "\u0661\u0662\u0663 \u00bd \u00b2 \u2167",
    "!!! ! a!b \u2026\u201cquoted\u201d\u2026",
    "\u4e2d\u6587 \ud55c\uad6d\uc5b4 \u0939\u093f\u0928\u094d\u0926\u0940 \u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639",
    "\U0001d518\U0001d52b\U0001d526 \U00010400\U00010428",
]
ALPHABET = [
    chr(c) for span in ((0, 0x250), (0x370, 0x530), (0x1E00, 0x2200), (0x3000, 0x3100), (0x1F300, 0x1F700)) for c in range(*span)
]


def random_prompts(count: int) -> list[str]:
    rng = random.Random(0)
    letters = [*ALPHABET, *" aAbB'sS<|>!12\u03a3" * 100]
    return ["".join(rng.choices(letters, k=rng.randrange(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("max_length", [5, 16, 77])
@pytest.mark.parametrize("name", ["input_ids", "input_ids_2", "input_ids_3"])
def test_tokens_are_pythons(name: str, max_length: int, node: str, renoise_bundle: Bundle) -> None:
    """CLIP's on any text; T5's on plain text, for the JavaScript library knows T5's table of replaced letters only in part."""
    record = next(t for t in renoise_bundle.manifest.text.tokenizers if t.input == name)
    content = renoise_bundle.file(record.path).read_text("utf-8")
    python = Tokenizer.from_str(content)
    python.enable_truncation(max_length)
    python.enable_padding(length=max_length, pad_id=record.pad_token_id)
    prompts = PLAIN_PROMPTS if name == "input_ids_3" else NASTY_PROMPTS + random_prompts(300)
    request = {"content": json.loads(content), "prompts": prompts}
    request["record"] = {"max_length": max_length, "pad_token_id": record.pad_token_id}
    got = run_modules(node, renoise_bundle.folder / "web", call="tokenize", **request)
    for prompt, tokens in zip(prompts, got, strict=True):
        expected = python.encode(prompt)
        cut = sum(len(piece.ids) - piece.special_tokens_mask.count(1) for piece in expected.overflowing)
        assert tokens["ids"] == expected.ids, prompt
        if "<|" not in prompt:  # there the Python count leaves out the prompt's own special tokens
            assert tokens["cut"] == cut, prompt


def test_picture_of_a_seed_is_pythons(node: str, browser_bundle: Bundle, reference: Pipeline) -> None:
    prompts = [PROMPT, PROMPT.replace("red", "green"), "word " * 20]
    drawn = pictures(node, browser_bundle, prompts=prompts, seed=7)
    expected = [reference.generate(prompt, seed=7)[0] for prompt in prompts]
    assert all(psnr_db(e, d["picture"]) >= REQUIRED_DB for e, d in zip(expected, drawn, strict=True))
    assert psnr_db(expected[0], drawn[1]["picture"]) < 30  # the comparison can fail
    assert [d["cut"] for d in drawn] == [reference.tokens_cut(prompt) for prompt in prompts]
    assert [stage for stage in drawn[0]["told"] if stage[0] == "denoise"] == [["denoise", i, 4] for i in range(5)]
    timings = drawn[0]["timings_ms"]
    assert timings["total"] == pytest.approx(timings["text"] + timings["denoise"] + timings["decode"])
    assert 0 < timings["load"] < timings["total"]


def test_guided_pictures_are_pythons(node: str, browser_bundle: Bundle, reference: Pipeline) -> None:
    (drawn,) = pictures(node, browser_bundle, prompts=[PROMPT], seed=7, guidanceScale=3.0, negativePrompt="a green star")
    expected = reference.generate(PROMPT, seed=7, guidance_scale=3.0, negative_prompt="a green star")[0]
    assert psnr_db(expected, drawn["picture"]) >= REQUIRED_DB
    assert psnr_db(reference.generate(PROMPT, seed=7)[0], drawn["picture"]) < 45


@pytest.fixture(scope="session")
def upon() -> np.ndarray:
    """A picture to draw upon, ``[64, 64, 3]``: 8 bits, so that a file of it is the same."""
    rows, columns = np.mgrid[0:64, 0:64].astype(np.float32)
    waves = [np.sin(rows / 7 + columns / 11), np.cos(columns / 5), np.sign(np.sin(rows / 13) * np.cos(columns / 17))]
    return np.asarray((127 + 120 * np.stack(waves, -1)).round() / 255, np.float32)


@pytest.mark.parametrize("masked", [False, True])
def test_pictures_upon_others_are_pythons(
    masked: bool, upon: np.ndarray, node: str, browser_bundle: Bundle, reference: Pipeline
) -> None:
    mask = np.zeros((64, 64), np.float32)
    mask[:, :24] = 1
    request = {"image": encoded(upon.transpose(2, 0, 1)), "strength": 0.5} | ({"mask": encoded(mask)} if masked else {})
    (drawn,) = pictures(node, browser_bundle, prompts=[PROMPT], seed=7, **request)
    given: dict[str, Any] = {"seed": 7, "image": upon, "strength": 0.5}
    expected = reference.generate(PROMPT, mask=mask if masked else None, **given)[0]
    assert psnr_db(expected, drawn["picture"]) >= REQUIRED_DB
    assert psnr_db(reference.generate(PROMPT, mask=None if masked else mask, **given)[0], drawn["picture"]) < 40
    assert [stage[0] for stage in drawn["told"]] == ["encode", "text", *["denoise"] * 3, "decode"]


def test_a_bundles_own_guidance_is_pythons(node: str, renoise_bundle: Bundle, tmp_path: Path) -> None:
    """With layers left out; the graphs are those of any bundle."""
    guidance = Guidance(guidance_scale=2.0, negative_prompt="a star", skip_guidance_layers=(0, 2), skip_layer_guidance_stop=0.8)
    folder = Path(shutil.copytree(renoise_bundle.folder, tmp_path / "b"))
    record = GuidanceRecord(**dataclasses.asdict(guidance))
    sampling = msgspec.structs.replace(renoise_bundle.manifest.sampling, guidance=record)
    (folder / "manifest.json").write_bytes(msgspec.structs.replace(renoise_bundle.manifest, sampling=sampling).to_json())
    bundle = open_bundle(folder)
    (drawn,) = pictures(node, bundle, prompts=[PROMPT], seed=5)
    expected = Pipeline(bundle).generate(PROMPT, seed=5)[0]
    assert psnr_db(expected, drawn["picture"]) >= REQUIRED_DB
    assert psnr_db(Pipeline(bundle).generate(PROMPT, seed=5, skip_guidance_layers=[])[0], drawn["picture"]) < 60


@pytest.mark.parametrize("given", [False, True], ids=["seed's noise", "given noise"])
def test_renoising_with_t5_is_pythons(given: bool, node: str, renoise_bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((1, 16, 6, 8), np.float32), rng.standard_normal((1, 4, 16, 6, 8), np.float32)
    request: dict[str, Any] = {"prompts": [PROMPT], "seed": 5, "keepGraphs": given}
    if given:
        request |= {"latents": encoded(latents), "noise": [encoded(n) for n in noise[0]]}
    (drawn,) = pictures(node, renoise_bundle, **request)
    python = Pipeline(renoise_bundle)
    expected = python.generate(PROMPT, latents=latents, step_noise=noise) if given else python.generate(PROMPT, seed=5)
    assert psnr_db(expected[0], drawn["picture"]) >= REQUIRED_DB


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"latents": encoded(np.zeros(7))}, "The latents do not fit the bundle. expected 1024 finite numbers, got 7"),
        (
            {"latents": encoded(np.full(1024, np.nan))},
            "The latents do not fit the bundle. expected 1024 finite numbers, got 1024",
        ),
        ({"guidanceScale": -1}, "The picture cannot be guided. guidanceScale: wrong"),
        ({"negativePrompt": "a star"}, "The picture cannot be guided. negativePrompt: does nothing without guidance"),
        ({"strength": 0.5}, "The picture cannot be drawn upon. strength and mask do nothing without image"),
        ({"image": encoded(np.zeros(5))}, "The picture cannot be drawn upon. image: expected 12288 numbers in [0, 1], got 5"),
        (
            {"image": encoded(np.zeros(12288)), "strength": 0},
            "The picture cannot be drawn upon. strength: wrong (expected a number above 0, at most 1, got 0)",
        ),
        ({"prompts": ["half \ud83d"]}, "The prompt cannot be read. It holds half of a surrogate pair"),
    ],
    ids=["latents' size", "NaN", "scale", "negative prompt", "no image", "image's size", "strength", "surrogate"],
)
def test_bad_requests(request_: dict[str, Any], message: str, node: str, browser_bundle: Bundle) -> None:
    answer = run_modules(node, browser_bundle.folder / "web", call="generate", **({"prompts": [PROMPT]} | request_))
    assert answer["error"].startswith(message)


@pytest.fixture(scope="module")
def page(chromium: None, browser_bundle: Bundle) -> Iterator[Chromium]:
    with opened_page(browser_bundle, ["--disable-gpu"]) as page:
        yield page


def tool(page: Chromium, method: str, **parameters: Any) -> Any:
    """A command of Chromium's developer tools for which Playwright has no call of its own."""
    return page.on_page(lambda shown: shown.context.new_cdp_session(shown).send(method, parameters))


def shown_pixels(page: Chromium) -> np.ndarray:
    """What the page's canvas shows, of another canvas: the browser warns of one that is read again and again."""
    page.evaluate(
        "globalThis.copy ??= new OffscreenCanvas(64, 64).getContext('2d', { willReadFrequently: true });"
        "copy.drawImage(document.getElementById('canvas'), 0, 0)"
    )
    return np.asarray(page.evaluate("[...copy.getImageData(0, 0, 64, 64).data]"), np.int64).reshape(64, 64, 4)


def test_page_draws(page: Chromium, reference: Pipeline) -> None:
    """As a person does it; the canvas is the Python runtime's picture, rounded to 8 bits alike but for ties."""
    page.evaluate(f"document.getElementById('prompt').value = {json.dumps(PROMPT)}; document.getElementById('seed').value = 7")
    page.evaluate("document.getElementById('draw').click()")
    assert page.evaluate("document.getElementById('draw').disabled && !document.getElementById('stop').hidden")
    page.wait_for("document.getElementById('status').textContent.startsWith('Done')")
    drawn = shown_pixels(page)
    assert (drawn[..., 3] == 255).all()
    assert np.abs(drawn[..., :3] - to_8_bit(reference.generate(PROMPT, seed=7)[0])).max() <= 1
    assert page.evaluate("document.getElementById('canvas').getAttribute('aria-label')") == f"Picture of: {PROMPT}"
    assert page.evaluate("document.getElementById('save').href").startswith("data:image/png;base64,")
    assert page.evaluate("document.querySelectorAll('#timings tr').length") == 5


def test_page_guides(page: Chromium, reference: Pipeline) -> None:
    """The negative prompt is asked for where it has an effect."""
    assert page.evaluate("document.getElementById('negative-row').hidden")
    page.evaluate(
        "const scale = document.getElementById('guidance'); scale.value = 3; scale.dispatchEvent(new Event('input'));"
        "document.getElementById('negative').value = 'a green star'"
    )
    assert not page.evaluate("document.getElementById('negative-row').hidden")
    done = "document.getElementById('status').textContent.startsWith('Done')"
    assert page.evaluate(f"{done} && (document.getElementById('draw').click(), !{done})"), "the last picture's line stays"
    page.wait_for(done)
    drawn = shown_pixels(page)
    expected = reference.generate(PROMPT, seed=7, guidance_scale=3.0, negative_prompt="a green star")[0]
    assert np.abs(drawn[..., :3] - to_8_bit(expected)).max() <= 1
    page.evaluate(
        "document.getElementById('guidance').value = 1; document.getElementById('guidance').dispatchEvent(new Event('input'))"
    )


def test_page_draws_upon_a_picture(page: Chromium, upon: np.ndarray, reference: Pipeline, tmp_path: Path) -> None:
    """A file is chosen, as a person does it; one that is no picture is said, and the next one is drawn upon."""
    assert not page.evaluate("document.getElementById('upon-row').hidden")
    Image.fromarray(to_8_bit(upon)).save(tmp_path / "upon.png")
    (tmp_path / "text.png").write_text("no picture")
    page.evaluate("document.getElementById('strength').value = 0.5")
    for file, says in (("text.png", "text.png cannot be read as a picture"), ("upon.png", "Done")):
        page.on_page(lambda shown, file=file: shown.set_input_files("#image", tmp_path / file))
        page.evaluate("document.getElementById('draw').click()")
        page.wait_for(f"document.getElementById('status').textContent.startsWith('{says}')")
    expected = reference.generate(PROMPT, seed=7, image=upon, strength=0.5)[0]
    assert np.abs(shown_pixels(page)[..., :3] - to_8_bit(expected)).max() <= 1
    page.on_page(lambda shown: shown.set_input_files("#image", []))


def test_page_stops_and_draws_again(page: Chromium) -> None:
    page.evaluate("document.getElementById('draw').click(); document.getElementById('stop').click()")
    page.wait_for("document.getElementById('status').textContent === 'Stopped.'")
    page.evaluate("document.getElementById('draw').click()")
    page.wait_for("document.getElementById('status').textContent.startsWith('Done')")


def test_page_is_isolated_quiet_and_asks_nobody_else(page: Chromium, browser_bundle: Bundle) -> None:
    assert page.evaluate("crossOriginIsolated") is True  # threads
    origin = page.evaluate("location.origin")
    assert {f"{origin}/web/app.js", f"{origin}/web/worker.js"} <= set(page.requests)
    assert all(url.startswith((f"{origin}/", "data:", "blob:")) for url in page.requests)
    assert set(page.messages) <= {"warning: No available adapters."}  # the browser's own word on WebGPU without a GPU
    blocked = page.evaluate("fetch('https://example.com/').then(() => 'fetched', () => 'blocked')")
    assert blocked == "blocked"  # by the server's policy, wherever there is a network


def test_graphs_are_downloaded_once(page: Chromium, browser_bundle: Bundle) -> None:
    """What the storage holds afterwards is this bundle, and nothing of one that was served here before."""
    for path in ("/denoiser.onnx?sha256=old", "/other/denoiser.onnx?sha256=old"):
        page.evaluate(f"caches.open('flash-deploy').then((store) => store.put({json.dumps(path)}, new Response('old')))")
    page.evaluate("flashDeploy.stop()")
    request = f"{{prompt: {json.dumps(PROMPT)}, image: new Float32Array(12288)}}"
    page.evaluate(f"flashDeploy.generate({request}, {{provider: 'wasm'}}).then(() => 1)")
    kept = page.evaluate("caches.open('flash-deploy').then((store) => store.keys()).then((all) => all.map((one) => one.url))")
    records = {r.path: r.sha256 for r in browser_bundle.manifest.files}
    origin = page.evaluate("location.origin")
    wanted = [path for path in records if path.endswith((".onnx", ".data", "tokenizer.json"))]
    other = f"{origin}/other/denoiser.onnx?sha256=old"  # of a bundle in a folder beneath
    assert sorted(kept) == sorted([*(f"{origin}/{path}?sha256={records[path]}" for path in wanted), other])


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_page_fits_any_screen(width: int, page: Chromium) -> None:
    tool(page, "Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=width < 768)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    heights = page.evaluate("[...document.querySelectorAll('button, input, select')].map((e) => e.offsetHeight).filter(Boolean)")
    assert min(heights) >= 44  # what a thumb hits (WCAG 2.2, 2.5.5)
    shown = "[...document.querySelectorAll('button, input, select, textarea')].filter((e) => e.offsetHeight)"
    boxes = page.evaluate(f"{shown}.map((e) => e.getBoundingClientRect()).map((b) => [b.left, b.top, b.right, b.bottom])")
    assert len(boxes) >= 6
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1], (one, other)


def test_controls_have_names(page: Chromium) -> None:
    nodes = tool(page, "Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "spinbutton", "combobox", "img", "image", "canvas")
    named = {n["role"]["value"]: n["name"]["value"] for n in nodes if n.get("role", {}).get("value") in roles}
    assert {"button", "textbox", "spinbutton", "combobox"} <= named.keys()
    assert all(named.values())


def test_run_in_browser(chromium: None, browser_bundle: Bundle, reference: Pipeline) -> None:
    latents = np.random.default_rng(1).standard_normal((1, 16, 8, 8), np.float32)
    timings = run_in_browser(browser_bundle, 2, request=PageRequest(PROMPT, latents=latents, keep_graphs=True))
    assert psnr_db(reference.generate(PROMPT, latents=latents)[0], timings.picture) >= REQUIRED_DB
    assert "Chrom" in timings.browser
    assert timings.isolated
    assert timings.first.load_ms > 0
    assert [run.load_ms for run in timings.runs] == [0, 0]
    assert all(run.total_ms > 0 for run in timings.runs)
    assert dataclasses.asdict(timings)["provider"] == "wasm"


def test_webgpu_computes_the_same(chromium: None, browser_bundle: Bundle, reference: Pipeline) -> None:
    """One graph on a GPU that the CPU plays (a picture takes it 40 s): int4 products, whose inputs WebGPU rounds to int8."""
    pooled = np.random.default_rng(0).standard_normal((1, 160), np.float32)
    (expected,) = reference.run("conditioner", {"pooled_projections": pooled})
    script = """
    (async (pooled) => {
      const { HttpFiles } = await import("/web/files.js");
      const { Sessions, loadRuntime } = await import("/web/sessions.js");
      const files = new HttpFiles(new URL("/", location));
      const manifest = await files.manifest();
      const sessions = new Sessions(await loadRuntime("webgpu"), manifest, files, "webgpu", false);
      const inputs = { pooled_projections: { data: Float32Array.from(pooled), dims: [1, pooled.length] } };
      return [...(await sessions.run("conditioner", inputs))[0].data];
    })
    """
    with opened_page(browser_bundle, SOFTWARE_WEBGPU) as page:
        if not page.evaluate("navigator.gpu?.requestAdapter()?.then(Boolean)"):
            pytest.skip("this Chromium has no software WebGPU")
        refused = page.evaluate("document.querySelector('option[value=webgpu]').disabled")
        got = np.asarray(page.evaluate(f"{script}({json.dumps(pooled.ravel().tolist())})", 60), np.float32)
    assert not refused
    assert psnr_db(expected.ravel(), got) >= 40  # 8-bit activations: about 1/256 of the largest of each block of 32


def test_page_without_runtime_says_what_to_do(chromium: None, builtin_bundle: Bundle, add_page, tmp_path: Path) -> None:
    bundle = add_page(builtin_bundle, tmp_path / "b", None)
    with opened_page(bundle, ["--disable-gpu"]) as page:
        text = page.evaluate("document.getElementById('status').textContent")
        assert page.evaluate("document.getElementById('draw').disabled")
    assert "flash-deploy web-runtime -o RUNTIME" in text
    with pytest.raises(InputError, match="--web-runtime"):
        run_in_browser(bundle, 1)


def test_damaged_file_is_found_by_the_page(chromium: None, browser_bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(browser_bundle.folder, tmp_path / "b"))
    with (folder / "denoiser.onnx.data").open("r+b") as stream:
        stream.write(b"!")
    with pytest.raises(BrowserError, match=r"A file is damaged. denoiser.onnx.data: expected sha256"):
        run_in_browser(open_bundle(folder), 0)
