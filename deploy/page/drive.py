"""Pictures in a real browser, without a person before it: for measurements and checks."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.bundle.folder import Bundle
from deploy.errors import Complaint, InputError
from deploy.page.chromium import SOFTWARE_WEBGPU, BrowserError, Chromium
from deploy.page.page import check_page
from deploy.page.serve import Server
from exporters.choices import PROMPTS, Provider


@dataclass(frozen=True)
class BrowserRun:
    """One picture's times in milliseconds: each stage with the loading of its graphs, loading alone, and all."""

    text_ms: float
    denoise_ms: float
    decode_ms: float
    load_ms: float
    total_ms: float


@dataclass(frozen=True)
class BrowserTimings:
    """What a browser did.

    Attributes:
        browser: its name and version.
        provider: ``wasm`` or ``webgpu``.
        threads: processors that the page sees; WebAssembly draws with one thread where the page is not isolated.
        isolated: whether the page may share memory between threads.
        adapter: the GPU, as WebGPU names it; empty for WebAssembly.
        first: the first picture: everything is downloaded, and the runtime is compiled.
        runs: the pictures after it.
        picture: the last one, ``[height, width, 3]``, fp32 in [0, 1].
    """

    browser: str
    provider: Provider
    threads: int
    isolated: bool
    adapter: str
    first: BrowserRun
    runs: tuple[BrowserRun, ...]
    picture: np.ndarray


@dataclass(frozen=True)
class PageRequest:
    """What a page is asked to draw, and how.

    Attributes:
        prompt: what to draw.
        seed: of the initial noise.
        latents: initial noise ``[1, channels, height / 8, width / 8]`` in place of the seed's.
        keep_graphs: keep graphs loaded between stages and pictures.
        timeout_s: of one picture.
    """

    prompt: str = PROMPTS[0]
    seed: int = 0
    latents: np.ndarray | None = None
    keep_graphs: bool = False
    timeout_s: float = 600.0


def run_in_browser(
    bundle: Bundle, runs: int, provider: Provider = "wasm", request: PageRequest | None = None, software_gpu: bool = False
) -> BrowserTimings:
    """Draw in a headless Chromium and say how long it took.

    Args:
        bundle: a browser bundle with its web runtime.
        runs: pictures after the first one.
        provider: ``wasm`` or ``webgpu``.
        request: the picture, the same each time; by default of the first fixed prompt.
        software_gpu: let the CPU play the GPU: checks what WebGPU computes, and its times mean nothing.

    Raises:
        BrowserError: there is no Chromium, it has no WebGPU, or the page cannot draw.
        InputError: the bundle has no page or no web runtime.
    """
    if to_do := check_page(bundle.manifest):
        raise InputError("The bundle cannot draw in a browser.", remedy=to_do)
    request = request or PageRequest()
    with opened_page(bundle, SOFTWARE_WEBGPU if software_gpu else ()) as chromium:
        about = about_page(chromium, provider)
        drawn = [draw_in_page(chromium, provider, request) for _ in range(runs + 1)]
    return BrowserTimings(
        browser=about["browser"],
        provider=provider,
        threads=about["threads"],
        isolated=about["isolated"],
        adapter=about["adapter"] if provider == "webgpu" else "",
        first=drawn[0][0],
        runs=tuple(times for times, _ in drawn[1:]),
        picture=drawn[-1][1],
    )


def about_page(chromium: Chromium, provider: Provider) -> dict[str, Any]:
    """What an opened page runs on: ``browser``, ``threads``, ``isolated`` and ``adapter``, as in :class:`BrowserTimings`.

    Raises:
        BrowserError: WebGPU is wanted and there is none.
    """
    about: dict[str, Any] = chromium.evaluate(_ABOUT)
    if provider == "webgpu" and not about["adapter"]:
        remedy = "run it where Chromium has a GPU, or let the CPU play one (software_gpu)"
        raise BrowserError("The browser has no WebGPU.", [Complaint("navigator.gpu", "no adapter")], remedy)
    return {**about, "browser": f"Chrome/{chromium.version}"}


def draw_in_page(chromium: Chromium, provider: Provider, request: PageRequest) -> tuple[BrowserRun, np.ndarray]:
    """One picture in an opened page: its times, and ``[height, width, 3]`` in [0, 1].

    Raises:
        BrowserError: the page cannot draw.
    """
    latents = None if request.latents is None else _base64(request.latents)
    picture = {"prompt": request.prompt, "seed": request.seed, "latents": latents}
    options = {"provider": provider, "keepGraphs": request.keep_graphs}
    drawn = chromium.evaluate(f"({_DRAW})({json.dumps(picture)}, {json.dumps(options)})", request.timeout_s)
    return BrowserRun(**{f"{stage}_ms": ms for stage, ms in drawn["timings_ms"].items()}), _picture(drawn)


@contextlib.contextmanager
def opened_page(bundle: Bundle, arguments: Sequence[str] = ()) -> Iterator[Chromium]:
    """A bundle's page in a headless Chromium, ready to draw or saying why it cannot, served by this process meanwhile.

    Raises:
        BrowserError: there is no Chromium, or the page does not load.
    """
    with Server(bundle) as server, Chromium(arguments) as chromium:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            chromium.open(server.url)
            chromium.wait_for("window.flashDeploy || document.querySelector('#status.wrong')")
            yield chromium
        finally:
            server.shutdown()
            thread.join()


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()


def _picture(drawn: dict[str, Any]) -> np.ndarray:
    planes = np.frombuffer(base64.b64decode(drawn["data"]), np.float32)
    return np.ascontiguousarray(planes.reshape(3, drawn["height"], drawn["width"]).transpose(1, 2, 0))


_ABOUT = """
(async () => {
  const info = (await navigator.gpu?.requestAdapter())?.info;
  const name = [info?.vendor, info?.architecture, info?.device, info?.description].filter(Boolean).join(" ");
  const adapter = info ? name || "unnamed" : "";
  return { adapter, threads: navigator.hardwareConcurrency, isolated: crossOriginIsolated };
})()
"""
_DRAW = """
async (request, options) => {
  const latents = request.latents ? new Float32Array(bytes(atob(request.latents)).buffer) : undefined;
  const { data, ...picture } = await flashDeploy.generate({ ...request, latents }, options);
  return { ...picture, data: btoa(text(new Uint8Array(data.buffer))) };

  function bytes(text) {
    return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  }

  function text(bytes) {
    const block = 1 << 14; // what one call takes as arguments
    let letters = "";
    for (let i = 0; i < bytes.length; i += block) {
      letters += String.fromCharCode(...bytes.subarray(i, i + block));
    }
    return letters;
  }
}
"""
