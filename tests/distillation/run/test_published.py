"""What a run hands out: students that draw in diffusers as in training, profiles whose codes are those of training, LoRAs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distillation.counters import Counter
from distillation.networks.drawing import decode
from distillation.networks.quantized import quantize
from distillation.recipe import RecipeError
from distillation.run.jobs import job_of
from distillation.run.lineage import INPUTS
from distillation.run.order import Order
from distillation.run.start import follow
from distillation.world.scenes import KINDS, parse
from exporters.restructure.conditioning import embed_timesteps
from exporters.student.open import open_student
from quantization.profile import load_profile
from tests.distillation.run.tiny import BRANCHES, LORA, PROFILE, RECIPE, STUDENT, lay_out, opened

PROMPTS = ["a red circle", "a small blue square left of a large green triangle"]


def db(wanted: Tensor, got: Tensor) -> float:
    """Signal to error; nothing that is no number passes."""
    assert bool(got.isfinite().all())
    return float(10 * torch.log10(wanted.square().sum() / (wanted - got).square().sum().clamp(min=1e-30)))


def drawn_by_training(order: Order, stage: str) -> tuple[Tensor, Tensor]:
    """Latents and pictures as training draws them."""
    run = opened(order)
    site = replace(run._site(run.recipe.stage(stage)), lineage=run.lineage(stage))
    latents = run._sampler(site.lineage, run.recipe.stage(stage).levels, site).latents(PROMPTS)
    return latents, decode(site.lineage.component("vae"), latents)


def drawn_by_diffusers(
    folder: Path, change: Any = lambda pipeline: None, variant: str | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Latents and pictures as a user's pipeline draws them, told what ``student.json`` says."""
    from diffusers import StableDiffusion3Pipeline

    defaults = json.loads((folder / (f"student.{variant}.json" if variant else "student.json")).read_text())
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32, variant=variant)
    pipeline.set_progress_bar_config(disable=True)
    change(pipeline)
    if (folder / "profile.toml").is_file():  # as a build stores it
        quantize(pipeline.transformer, load_profile(folder / "profile.toml"))
    told = {name: defaults[name] for name in ("height", "width", "sigmas", "guidance_scale", "max_sequence_length")} | options
    shape = (16, defaults["height"] // 8, defaults["width"] // 8)
    start = Counter(0, "draw", 0, range(len(PROMPTS))).normal("start", shape, torch.zeros(()))
    latents = pipeline(PROMPTS, latents=start, output_type="latent", **told).images
    return latents, decode(pipeline.vae, latents)


@pytest.mark.parametrize(("student", "stage"), [("student-2", "match"), ("student-w4", "w4"), ("student-small", "small")])
def test_diffusers_draws_what_training_draws(whole: Order, student: str, stage: str) -> None:
    """Both compute in fp32. Levels in the pipeline pass through fp32 and the scheduler's shift: a few 2^-24, which a thousand and
    the sinusoid's highest frequency make 2e-4 of phase at most, with less than a tenth of the embedding's weight: 80 dB
    (115 to 130 seen)."""
    for wanted, got in zip(drawn_by_training(whole, stage), drawn_by_diffusers(whole.out / student), strict=True):
        assert db(wanted, got) > 80


def again_with(order: Order, students: str, file: str) -> Order:
    """The same run by a recipe that hands out other students; nothing is trained anew."""
    recipe = Path(order.recipe)
    told = recipe.read_text().partition("[[student]]")[0] + BRANCHES.partition("[[student]]")[0] + students
    recipe.with_name(file).write_text(told)
    return replace(order, recipe=str(recipe.with_name(file)))


@pytest.mark.filterwarnings("ignore:A mixture of")  # of files with the variant and without: that is what a variant is
def test_siblings_lie_in_one_folder_and_draw_as_they_were_trained(whole: Order) -> None:
    """The folder gains the transformer that they do not share, and nothing else of any size."""
    both = again_with(whole, '[[student]]\nname = "both"\nstage = "merged"\nvariants = { 2-steps = "follow" }\n', "both.toml")
    assert follow(both) == 0
    folder = whole.out / "both"
    weights = {str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")}
    alone = {str(file.relative_to(whole.out / "student-2")) for file in (whole.out / "student-2").rglob("*.safetensors")}
    assert weights - alone == {"transformer/diffusion_pytorch_model.2-steps.safetensors"}
    for variant, stage in ((None, "merged"), ("2-steps", "follow")):
        for wanted, got in zip(drawn_by_training(both, stage), drawn_by_diffusers(folder, variant=variant), strict=True):
            assert db(wanted, got) > 80
    assert db(drawn_by_training(both, "merged")[0], drawn_by_diffusers(folder, variant="2-steps")[0]) < 80  # that it can fail
    assert open_student(folder, variant="2-steps").defaults.steps == 2
    assert "`--variant 2-steps`" in (folder / "README.md").read_text()


def test_students_of_shapes_tell_what_to_ask_them(shapes_run: Path) -> None:
    prompts = (shapes_run / "student-4" / "prompts.txt").read_text().splitlines()
    assert len(set(prompts)) == 128
    assert {parse(prompt).kind for prompt in prompts} == set(KINDS)


def test_a_variant_is_built_as_its_student(whole: Order) -> None:
    mixed = again_with(whole, '[[student]]\nname = "mixed"\nstage = "small"\nvariants = { big = "merged" }\n', "mixed.toml")
    with pytest.raises(RecipeError, match=r"variants\.big: its vae is built otherwise \(expected the student's .*_class_name"):
        follow(mixed)
    assert not (whole.out / "mixed").exists()


@pytest.mark.parametrize("wrong", ["levels", "a weight", "guidance"])
def test_another_drawing_is_told_from_it(whole: Order, wrong: str) -> None:
    def change(pipeline: Any) -> None:
        if wrong == "a weight":
            with torch.no_grad():
                pipeline.transformer.proj_out.weight[0, 0] += 0.01

    changes = {"levels": {"sigmas": [1.0, 0.75]}, "guidance": {"guidance_scale": 1.5}}
    latents, _ = drawn_by_diffusers(whole.out / "student-2", change, **changes.get(wrong, {}))
    assert db(drawn_by_training(whole, "match")[0], latents) < 70


def test_students_are_opened_like_any_other(whole: Order) -> None:
    for name in ("student-2", "student-w4", "student-small"):
        student = open_student(whole.out / name)
        defaults = student.defaults
        assert (defaults.height, defaults.width, defaults.guidance_scale) == (32, 32, 1.0)
        assert defaults.sigmas == pytest.approx((1.0, 0.5))  # .75 before the shift of 3
        card = (whole.out / name / "README.md").read_text()
        assert "library_name: diffusers" in card
        assert "Draws in 2 steps without guidance" in card
        assert not any(str(whole.out.parent) in file.read_text() for file in (whole.out / name).rglob("*.json"))
    assert open_student(whole.out / "student-small").configs["vae"]["_class_name"] == "AutoencoderTiny"
    assert open_student(whole.out / "student-2").configs["vae"]["_class_name"] == "AutoencoderKL"


def test_codes_of_the_published_weights_are_those_of_training(whole: Order) -> None:
    """Whoever draws without the profile draws what was learned; a build with it stores the same weights again, bit for bit."""
    student, profile = open_student(whole.out / "student-w4"), load_profile(whole.out / "student-w4/profile.toml")
    (result,) = whole.out.glob("stages/w4-*/result")
    stored = opened(whole).lineage("w4").component("transformer")
    plain = {name: tensor.clone() for name, tensor in stored.state_dict().items()}
    names = quantize(stored, profile)
    assert names
    for name in names:
        published = np.asarray(student.weights["transformer"][name].load())
        assert np.array_equal(published, plain[name].numpy())
        assert np.array_equal(published, stored.get_submodule(name.removesuffix(".weight")).weight.detach().numpy())
    entered = opened(whole).lineage("match").component("transformer").state_dict()
    assert not any(torch.equal(plain[name], entered[name]) for name in names)
    assert load_profile(result / "profile.toml").rules == load_profile(whole.out.parent / "w4.toml").rules


def test_constants_that_an_export_computes_are_those_of_training(whole: Order) -> None:
    """Time embeddings, which a native bundle holds in place of their layers: fp32 arithmetic of the same weights, so 1e-5."""
    run, timesteps = opened(whole), (1000.0, 750.0)
    student = open_student(whole.out / "student-w4")
    trained = run.lineage("w4").component("transformer")
    quantize(trained, load_profile(whole.out / "student-w4/profile.toml"))
    embed = trained.time_text_embed
    with torch.no_grad():
        wanted = embed.timestep_embedder(embed.time_proj(torch.tensor(timesteps))).numpy()
    got = embed_timesteps(student.weights["transformer"], timesteps)
    assert np.allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_who_learned_with_rounded_inputs_draws_with_them(whole: Order, tmp_path: Path) -> None:
    (tmp_path / "w8.toml").write_text(PROFILE.replace("int4g32", "int8g32"))
    run = opened(replace(whole, changes=("w4.round_inputs=true", f"w4.profile='{tmp_path / 'w8.toml'}'")))
    stage = run.recipe.stage("w4")
    site = run._site(stage)
    job = job_of(stage, site)
    job.write(tmp_path, {})
    lineage = replace(site.lineage, results=(tmp_path, *site.lineage.results))
    batch = job.batches(0)
    asked = (batch.noise, torch.ones(len(batch.noise)), batch.cond)
    with torch.no_grad():
        learned = job.networks.student(*asked)
        assert bool(learned.isfinite().all())
        assert torch.equal(site.drawing(lineage)(*asked), learned)
        (tmp_path / INPUTS).unlink()
        assert not torch.equal(site.drawing(lineage)(*asked), learned)


def test_a_decoder_of_a_quantized_student_goes_with_its_profile(whole: Order) -> None:
    texts = {(whole.out / name / "profile.toml").read_text() for name in ("student-w4", "student-small")}
    assert len(texts) == 1
    assert not (whole.out / "student-2/profile.toml").exists()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Order:
    pytest.importorskip("peft")
    order = lay_out(tmp_path_factory.mktemp("adapted"), RECIPE + LORA + STUDENT)
    assert follow(order) == 0
    return order


def test_a_stage_goes_on_from_the_adapter_before_it(adapted: Order) -> None:
    """Two steps at a learning rate of 1e-4: a second matrix, which begins as zeros, is still near the first stage's."""
    first, second = (
        load_file(next(adapted.out.glob(f"stages/{name}-*/result/adapter.safetensors"))) for name in ("follow", "match")
    )
    assert first.keys() == second.keys()
    moved = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert 0 < moved < 4e-4
    assert max(float(tensor.abs().max()) for name, tensor in first.items() if "lora_B" in name) > 1e-3


def test_the_adapter_on_the_teacher_is_the_student(adapted: Order) -> None:
    folder = adapted.out / "student-2-lora"
    wanted, _ = drawn_by_training(adapted, "match")
    student, _ = drawn_by_diffusers(adapted.out / "student-2")
    assert db(wanted, student) > 80
    from diffusers import StableDiffusion3Pipeline

    defaults = json.loads((adapted.out / "student-2/student.json").read_text())
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(adapted.teacher, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    told = {name: defaults[name] for name in ("height", "width", "sigmas", "guidance_scale", "max_sequence_length")}
    start = Counter(0, "draw", 0, range(len(PROMPTS))).normal("start", (16, 4, 4), torch.zeros(()))

    def draw() -> Tensor:
        latents: Tensor = pipeline(PROMPTS, latents=start, output_type="latent", **told).images
        return latents

    teacher = draw()
    pipeline.load_lora_weights(folder)
    assert db(wanted, draw()) > 80
    assert db(wanted, teacher) < 70  # 62 seen: six small steps


def test_a_decoder_hands_the_adapter_on(adapted: Order, tmp_path: Path) -> None:
    """A stage that leaves the transformer alone does not part it from its adapter."""
    small = '[[stage]]\nkind = "decoder"\nname = "small"\nafter = "match"\nsteps = 1\nbatch = 2\nlevels = [1.0, 0.75, 0.0]\n'
    small += 'channels = [4, 4, 4, 4]\nblocks = [1, 1, 1, 1]\nlatents = 2\n[[student]]\nname = "tiny"\nstage = "small"\n'
    file = Path(adapted.recipe).with_name("small.toml")
    file.write_text(RECIPE + LORA + small)
    assert follow(replace(adapted, recipe=str(file), changes=("judged=0",))) == 0
    lora = "pytorch_lora_weights.safetensors"
    assert (adapted.out / "tiny-lora" / lora).read_bytes() == (adapted.out / "student-2-lora" / lora).read_bytes()
