"""A pipeline as its users know it: several prompts, callbacks, threads, and the end of it. On a bundle that draws in a second."""

from __future__ import annotations

import gc
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec
import numpy as np
import pytest
from PIL import Image

from deploy.errors import InputError
from deploy.runtime import DrawingOptions, Pipeline
from deploy.runtime.arguments import GuidanceOptions
from deploy.runtime.eight_bit import to_8_bit
from deploy.runtime.sessions import Run, Sessions
from exporters.reference.decibels import psnr_db
from tests.helpers.kept_bundle import V1

CAT, DOG = "a cat", "a red circle left of a blue square"


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(V1, threads=1)  # one: the order of its sums is fixed, so that equal pictures are equal to the last bit


def renoising(pipeline: Pipeline) -> Pipeline:
    sampling = msgspec.structs.replace(pipeline.manifest.sampling, method="renoise")
    pipeline.manifest = msgspec.structs.replace(pipeline.manifest, sampling=sampling)
    return pipeline


@pytest.mark.parametrize("noise", ["numpy", "torch"])
@pytest.mark.parametrize("prepare", [lambda pipeline: pipeline, renoising], ids=["euler", "renoise"])
def test_a_prompt_draws_the_same_whatever_stands_beside_it(
    noise: Any, prepare: Callable[[Pipeline], Pipeline], pipeline: Pipeline
) -> None:
    prepare(pipeline)
    together = pipeline.generate([CAT, DOG, CAT], 3, num_images=2, noise=noise)
    assert together.shape == (6, 16, 16, 3)
    for i, prompt in enumerate((CAT, DOG, CAT)):
        assert np.array_equal(together[2 * i : 2 * i + 2], pipeline.generate(prompt, 3, num_images=2, noise=noise))
    different = {together[i].tobytes() for i in range(6)}
    assert len(different) == 4  # the prompt and the picture's number count, and nothing else


def test_given_noise_is_dealt_to_the_prompts_in_order(pipeline: Pipeline) -> None:
    renoising(pipeline)
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((4, 16, 2, 2), np.float32), rng.standard_normal((4, 2, 16, 2, 2), np.float32)
    together = pipeline.generate((CAT, DOG), latents=latents, step_noise=noise)
    for part, prompt in ((slice(2), CAT), (slice(2, 4), DOG)):
        alone = pipeline.generate(prompt, num_images=2, latents=latents[part], step_noise=noise[part])
        assert np.array_equal(together[part], alone)
    assert not np.array_equal(together, pipeline.generate((CAT, DOG), latents=latents, step_noise=noise[::-1]))


def test_each_graph_is_loaded_once_for_all_prompts(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], Sessions.load

    def counted(sessions: Sessions, graph: str) -> Run:
        loaded.append(graph)
        return load(sessions, graph)

    monkeypatch.setattr(Sessions, "load", counted)
    pipeline.generate([CAT, DOG, "x"], num_images=2)
    assert loaded == ["text_encoder", "conditioner", "denoiser", "vae_decoder"]


def test_each_prompt_is_encoded_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, run = [], pipeline.run
    monkeypatch.setattr(pipeline, "run", lambda graph, inputs: (ran.append(graph), run(graph, inputs))[1])
    pipeline.generate([CAT, DOG], num_images=3)
    assert [ran.count(graph) for graph in ("text_encoder", "conditioner", "denoiser", "vae_decoder")] == [2, 2, 2 * 3 * 2, 2 * 3]


def test_images_are_the_same_pictures(pipeline: Pipeline) -> None:
    images = pipeline.images([CAT, DOG], 5, noise="torch")
    assert [(image.size, image.mode, type(image)) for image in images] == [((16, 16), "RGB", Image.Image)] * 2
    assert np.array_equal(
        np.stack([np.asarray(image) for image in images]), to_8_bit(pipeline.generate([CAT, DOG], 5, noise="torch"))
    )


def test_images_takes_what_generate_takes() -> None:
    generate = inspect.signature(Pipeline.generate).parameters
    images = inspect.signature(Pipeline.images).parameters
    by_place = {name: p.default for name, p in generate.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert {name: p.default for name, p in images.items() if name != "options"} == by_place
    by_name = {name for name, p in generate.items() if p.kind is p.KEYWORD_ONLY} | set(get_type_hints(GuidanceOptions))
    assert set(get_type_hints(DrawingOptions)) == by_name
    assert list(by_place) == ["self", "prompt", "seed", "num_images", "latents", "height", "width"]  # as in 0.1


def test_the_callback_is_told_every_step_of_every_picture(pipeline: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    seen: list[np.ndarray] = []

    def callback(step: int, steps: int, latents: np.ndarray) -> None:
        told.append((step, steps))
        seen.append(latents)

    pictures = pipeline.generate([CAT, DOG], seed=1, num_images=2, callback=callback)
    assert told == [(0, 2), (1, 2)] * 4
    assert {(latents.shape, latents.dtype) for latents in seen} == {((1, 16, 2, 2), np.dtype(np.float32))}
    decoded = np.concatenate([pipeline._stages.decode(latents) for latents in seen[1::2]])
    assert np.array_equal(decoded.transpose(0, 2, 3, 1), pictures)  # the last step's are what becomes the picture


@pytest.mark.parametrize("prepare", [lambda pipeline: pipeline, renoising], ids=["euler", "renoise"])
def test_previews_are_of_the_clean_latents(prepare: Callable[[Pipeline], Pipeline], pipeline: Pipeline) -> None:
    """The last step's are the picture; the first step's, of an Euler step, lie where its velocity leads to from the noise."""
    pipeline, noise = prepare(pipeline), np.random.default_rng(0).standard_normal((2, 16, 2, 2), np.float32)
    latents: list[np.ndarray] = []
    previews: list[tuple[int, int, np.ndarray]] = []
    pictures = pipeline.generate(
        CAT,
        latents=noise,
        callback=lambda step, steps, after: latents.append(after),
        previews=lambda *told: previews.append(told),
    )
    assert [told[:2] for told in previews] == [(0, 2), (1, 2)] * 2
    assert np.array_equal([told[2] for told in previews[1::2]], pictures)
    assert np.array_equal(pipeline.generate(CAT, latents=noise), pictures)
    if pipeline.manifest.sampling.method == "euler":
        begin, end = pipeline.manifest.sampling.sigmas[:2]
        clean = noise[:1] - begin * (latents[0] - noise[:1]) / (end - begin)
        decoded = pipeline._stages.decode(clean.astype(np.float32))[0].transpose(1, 2, 0)
        assert psnr_db(decoded, previews[0][2]) > 80
        assert psnr_db(decoded, previews[1][2]) < 40  # another step's is another


def test_a_callback_cannot_change_the_picture(pipeline: Pipeline) -> None:
    def spoil(step: int, steps: int, latents: np.ndarray) -> None:
        latents[:] = np.nan

    assert np.array_equal(pipeline.generate(CAT, callback=spoil), pipeline.generate(CAT))


def test_what_a_callback_raises_comes_out_and_leaves_nothing_loaded(pipeline: Pipeline) -> None:
    class EnoughError(Exception):
        pass

    def stop(step: int, steps: int, latents: np.ndarray) -> None:
        assert list(pipeline._sessions._loaded) == ["denoiser"]
        raise EnoughError

    with pytest.raises(EnoughError):
        pipeline.generate(CAT, callback=stop)
    assert pipeline._sessions._loaded == {}
    assert pipeline.generate(CAT).shape == (1, 16, 16, 3)  # and it can be used again


def test_a_callback_may_draw_with_its_own_pipeline(pipeline: Pipeline) -> None:
    inner: list[np.ndarray] = []

    def draw(step: int, steps: int, latents: np.ndarray) -> None:
        inner.append(pipeline.generate(DOG))

    assert np.array_equal(pipeline.generate(CAT, callback=draw), pipeline.generate(CAT))
    assert all(np.array_equal(picture, pipeline.generate(DOG)) for picture in inner)


USES: dict[str, Callable[[Pipeline], object]] = {
    "generate": lambda pipeline: pipeline.generate(CAT),
    "images": lambda pipeline: pipeline.images(CAT),
    "run": lambda pipeline: pipeline.run("conditioner", {}),
    "load": lambda pipeline: pipeline.load("conditioner"),
    "tokenize": lambda pipeline: pipeline.tokenize(CAT),
    "tokens_cut": lambda pipeline: pipeline.tokens_cut(CAT),
    "with": lambda pipeline: pipeline.__enter__(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closed_pipeline_says_so(use: Callable[[Pipeline], object], pipeline: Pipeline) -> None:
    pipeline.close()
    pipeline.close()
    with pytest.raises(InputError, match=r"The pipeline is closed\.[\s\S]*bundle_v1[\s\S]*open the bundle in a new one"):
        use(pipeline)


def test_closing_frees_what_was_kept() -> None:
    with Pipeline(V1, keep_graphs=True) as pipeline:
        pipeline.generate(CAT)
        kept = [weakref.ref(run) for run in pipeline._sessions._loaded.values()]
        assert len(kept) == 4
    assert [run() for run in kept] == [None] * 4
    with pytest.raises(ZeroDivisionError), Pipeline(V1, keep_graphs=True) as failing:
        1 / 0  # noqa: B018
    with pytest.raises(InputError, match="is closed"):
        failing.generate(CAT)


def test_whoever_lets_go_of_a_pipeline_frees_its_graphs() -> None:
    """At once: there is no circle of references that would wait for the collector."""
    pipeline = Pipeline(V1, keep_graphs=True)
    pipeline.generate(CAT)
    kept = [weakref.ref(run) for run in pipeline._sessions._loaded.values()]
    gc.disable()
    try:
        del pipeline
        assert [run() for run in kept] == [None] * 4
    finally:
        gc.enable()


def test_threads_wait_for_one_another(pipeline: Pipeline) -> None:
    """The second one comes while the first is in its first step, and hears nothing until that is done."""
    events: list[str] = []
    second_heard = threading.Event()
    drawn: dict[str, np.ndarray] = {}

    def hear(stage: str, done: int, total: int) -> None:
        events.append("second")
        second_heard.set()

    second = threading.Thread(target=lambda: drawn.update(second=pipeline.generate(DOG, seed=2, progress=hear)))

    def callback(step: int, steps: int, latents: np.ndarray) -> None:
        if step == 0:
            second.start()
            assert not second_heard.wait(0.5)  # without a lock it would hear of its text at once
        events.append("first")

    drawn["first"] = pipeline.generate(CAT, seed=1, callback=callback)
    second.join()
    assert events == ["first"] * 2 + ["second"] * len(events[2:])
    assert second_heard.is_set()
    assert np.array_equal(drawn["first"], pipeline.generate(CAT, seed=1))
    assert np.array_equal(drawn["second"], pipeline.generate(DOG, seed=2))


def test_closing_waits_for_the_picture_of_another_thread(pipeline: Pipeline) -> None:
    closed = threading.Event()
    closer = threading.Thread(target=lambda: (pipeline.close(), closed.set()))

    def callback(step: int, steps: int, latents: np.ndarray) -> None:
        if step == 0:
            closer.start()
            assert not closed.wait(0.5)

    assert pipeline.generate(CAT, callback=callback).shape == (1, 16, 16, 3)
    closer.join()
    with pytest.raises(InputError, match="is closed"):
        pipeline.generate(CAT)


def test_many_threads_draw_their_own_pictures(pipeline: Pipeline) -> None:
    alone = [pipeline.generate(CAT, seed=seed) for seed in range(4)]
    drawn: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: drawn.update({seed: pipeline.generate(CAT, seed=seed)})) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(drawn[seed], alone[seed]) for seed in range(4))
