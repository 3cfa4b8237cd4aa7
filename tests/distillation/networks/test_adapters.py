"""One transformer in three roles: who speaks, what is learned and kept, and what is published of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors import safe_open

from distillation.batches import Batch, Networks
from distillation.loop import Run, run_stage
from distillation.networks.adapters import AdaptedVelocity, Roles, adapted, merged, targeted, write_lora
from distillation.networks.conditioning import Conditioning
from distillation.networks.roles import VelocityTransformer
from distillation.random_students import PRESETS, _transformer_config, make_student
from distillation.run import state
from distillation.run.processes import Processes
from distillation.stages import Lora, MatchStage, Optimizer
from exporters.errors import InputError
from exporters.reference.decibels import snr_db
from exporters.student.open import open_student

LORA = Lora(rank=4, alpha=6.0)
UNHEARD = "transformer_blocks.2.attn.add_q_proj"  # the last block throws away what text asks: no gradient, in any student
LAYERS = 3 * 8 - 1 + 4 + 3 * 4 - 2  # a block's attention without the last one's text output; the dual attention; feed-forward


def transformer(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(seed)
    return SD3Transformer2DModel.from_config(_transformer_config(PRESETS["tiny"])).to(dtype)


def trained(roles: Roles) -> Roles:
    """As after some training: both adapters say something, and not the same."""
    generator = torch.Generator().manual_seed(1)
    for role in (roles.student, roles.fake):
        for parameter in role.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return roles


def asked(batch: int = 2, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(seed)
    tokens, pooled = torch.randn(batch, 7, 96, generator=generator), torch.randn(batch, 72, generator=generator)
    x = torch.randn(batch, 16, 8, 8, generator=generator)
    return x, torch.linspace(0.9, 0.4, batch), Conditioning(tokens, pooled, 5)


def test_all_begin_as_the_teacher() -> None:
    plain = transformer()
    with torch.no_grad():
        wanted = VelocityTransformer(plain)(*asked())
        roles = adapted(plain, LORA)
        for role in (roles.student, roles.fake, roles.teacher):
            assert torch.equal(role(*asked()), wanted)


def test_a_role_is_what_peft_says_with_its_adapter() -> None:
    """Against PEFT's own way of saying whose turn it is, on a network of its own."""
    roles, other = trained(adapted(transformer(), LORA)), trained(adapted(transformer(), LORA))
    with torch.no_grad():
        for name, role in (("student", roles.student), ("fake", roles.fake)):
            other.transformer.set_adapter(name)
            assert torch.equal(role(*asked()), VelocityTransformer(other.transformer)(*asked()))
        other.transformer.disable_adapters()
        assert torch.equal(roles.teacher(*asked()), VelocityTransformer(other.transformer)(*asked()))
        assert not torch.equal(roles.teacher(*asked()), roles.student(*asked()))
        assert not torch.equal(roles.fake(*asked()), roles.student(*asked()))


def test_a_role_owns_its_adapter_alone() -> None:
    roles = adapted(transformer(), LORA)
    for role in (roles.student, roles.fake):
        names = [name for name, parameter in role.named_parameters() if parameter.requires_grad]
        assert list(role.state_dict()) == names
        assert len(names) == 2 * LAYERS
        assert names[0] == "adapter.transformer_blocks.0.attn.to_q.lora_A.weight"
    owned = {parameter for role in (roles.student, roles.fake) for parameter in role.parameters()}
    assert {parameter for parameter in roles.transformer.parameters() if parameter.requires_grad} == owned
    assert len(owned) == 4 * LAYERS


def test_nothing_of_the_base_is_copied() -> None:
    plain = transformer()
    before = {name: parameter.data_ptr() for name, parameter in plain.named_parameters()}
    roles = adapted(plain, LORA)
    after = {
        name.replace(".base_layer.", "."): parameter.data_ptr()
        for name, parameter in roles.transformer.named_parameters()
        if ".lora_" not in name
    }
    assert before == after


def test_the_seed_decides_the_beginning() -> None:
    torch.manual_seed(5)
    one, other, third = (adapted(transformer(), LORA, seed).student.state_dict() for seed in (0, 0, 1))
    name = "adapter.transformer_blocks.0.attn.to_q.lora_A.weight"
    assert torch.equal(one[name], other[name])
    assert not torch.equal(one[name], third[name])


def gradients(*, checkpointing: bool, after: bool = False, interrupted: bool = True, half: bool = False) -> list[torch.Tensor]:
    """Both roles' gradients, the student's of a pass after which fake model and teacher speak before it goes back."""
    plain = transformer()
    if checkpointing and not after:
        plain.enable_gradient_checkpointing()
    roles = trained(adapted(plain, LORA, half=half))
    if checkpointing and after:
        plain.enable_gradient_checkpointing()
    drawn = roles.student(*asked())
    if interrupted:
        told = roles.fake(*asked(seed=3))
        with torch.no_grad():
            roles.fake(*asked())
        roles.teacher(*asked())
        loss = drawn.square().mean() + told.square().mean()
    else:
        loss = drawn.square().mean()
    loss.backward()
    if not interrupted:
        roles.fake(*asked(seed=3)).square().mean().backward()
    return [parameter.grad for role in (roles.student, roles.fake) for parameter in role.parameters()]


@pytest.mark.parametrize(("after", "half"), [(False, False), (True, False), (False, True)], ids=["before", "after", "half"])
def test_blocks_are_computed_again_as_who_called_them(after: bool, half: bool) -> None:
    """Bit for bit: the same operations in the same order, whoever spoke in between."""
    wanted = gradients(checkpointing=False, interrupted=False, half=half)
    for got in (gradients(checkpointing=False, half=half), gradients(checkpointing=True, after=after, half=half)):
        assert all(torch.equal(one, other) for one, other in zip(wanted, got, strict=True))


def test_blocks_are_computed_again_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by nobody they would be computed as the teacher: the test above can fail."""
    monkeypatch.setattr("distillation.networks.adapters._Base.recomputed", lambda base, block, *inputs: _unaware(block, *inputs))
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        gradients(checkpointing=True)


def _unaware(block: Any, *inputs: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_features_of_the_fake_model_have_gradients(checkpointing: bool) -> None:
    roles = trained(adapted(transformer(), LORA))
    if checkpointing:
        roles.transformer.enable_gradient_checkpointing()
    x, t, cond = asked()
    x.requires_grad_()
    features = roles.features(x, t, cond, (0, 1))
    roles.teacher(*asked())
    sum(part.square().mean() for part in features).backward()
    assert features[0].shape == (2, 16, 48)
    assert x.grad is not None
    wanted = trained(adapted(transformer(), LORA))
    y, _, _ = asked()
    y.requires_grad_()
    sum(part.square().mean() for part in wanted.features(y, t, cond, (0, 1))).backward()
    assert torch.equal(x.grad, y.grad)
    assert not torch.equal(features[1], roles.student.features(*asked(), (1,))[0])


def test_who_spoke_before_speaks_again_after_an_error() -> None:
    roles = trained(adapted(transformer(), LORA))
    wanted = roles.teacher(*asked())
    x, t, _ = asked()
    with pytest.raises(RuntimeError):
        roles.student(x, t, Conditioning(torch.zeros(2, 7, 5), torch.zeros(2, 72), 5))
    assert torch.equal(roles.teacher(*asked()), wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_base_in_bfloat16(checkpointing: bool) -> None:
    """Adapters stay in fp32 and learn; the velocity is that of fp32 but for bfloat16's rounding.

    A value's rounding is at most 2^-9 of it, 54 dB and more; of ten such errors in a row each weighs as much: 44 dB, 43.6 seen.
    Without the adapter it would be 24 dB.
    """
    exact = trained(adapted(transformer(), LORA))
    roles = trained(adapted(transformer(dtype=torch.bfloat16), LORA))
    roles.student.load_state_dict(exact.student.state_dict())
    if checkpointing:
        roles.transformer.enable_gradient_checkpointing()
    with torch.no_grad():
        roles.student(*asked())  # a pass without gradient before, as rollouts are
    v = roles.student(*asked())
    roles.fake(*asked())
    assert v.dtype == torch.float32
    assert snr_db(exact.student(*asked()).detach().numpy(), v.detach().numpy()) > 38
    v.square().mean().backward()
    for name, parameter in roles.student.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert (parameter.grad.abs().sum() > 0) == (UNHEARD not in name)
    fresh = adapted(transformer(dtype=torch.bfloat16), LORA)
    assert torch.equal(fresh.teacher(*asked()), fresh.student(*asked()).detach())
    assert snr_db(exact.student(*asked()).detach().numpy(), fresh.teacher(*asked()).numpy()) < 30  # the adapter is heard


def test_the_fake_model_begins_as_the_student() -> None:
    roles = trained(adapted(transformer(), LORA))
    roles.fake.begin_as(roles.student)
    assert torch.equal(roles.fake(*asked()), roles.student(*asked()))
    with torch.no_grad():
        next(iter(roles.fake.parameters())).mul_(2)
    assert not torch.equal(roles.fake(*asked()), roles.student(*asked()))


LEVELS = (1.0, 0.75, 0.5, 0.0)
STAGE = MatchStage(
    name="s",
    steps=4,
    levels=LEVELS,
    guidance=2.0,
    fake_steps=1,
    average=0.5,
    optimizer=Optimizer(learning_rate=1e-2, decay="linear"),
    fake_optimizer=Optimizer(learning_rate=2e-2),
)
ONE = Processes()


def networks() -> tuple[Networks, Roles]:
    plain = transformer()
    plain.enable_gradient_checkpointing()
    roles = trained(adapted(plain, LORA))
    return Networks(roles.student, roles.teacher, roles.fake), roles


def batch(step: int) -> Batch:
    x, _, cond = asked(seed=10 + step)
    return Batch(noise=x, cond=cond, uncond=Conditioning(torch.zeros_like(cond.tokens), torch.zeros_like(cond.pooled), 5))


def values(role: AdaptedVelocity) -> list[torch.Tensor]:
    return [parameter.detach().clone() for name, parameter in role.named_parameters() if UNHEARD not in name]


def test_a_stage_of_matching_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Student and fake model learn, the base does not; the average is handed on; a run that was stopped is the same run."""
    whole, roles = networks()
    before, base = values(roles.student), roles.teacher(*asked())
    last: list[torch.Tensor] = []

    def keep(run: Run, record: dict[str, float]) -> None:
        last[:] = values(roles.student)
        if run.step == 2:
            state.save(tmp_path, run, "me", ONE)

    records = run_stage(STAGE, whole, batch, seed=0, on_step=keep).records
    assert torch.equal(roles.teacher(*asked()), base)
    assert not any(torch.equal(one, other) for one, other in zip(before, values(roles.student), strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(last, values(roles.student), strict=True))  # the average

    checkpoint = state.latest(tmp_path, "me")
    assert checkpoint is not None
    stored = [name for file in checkpoint.glob("*.safetensors") for name in safe_open(file, "pt").keys()]  # noqa: SIM118  # no mapping
    assert all("/adapter.transformer_blocks." in name for name in stored)
    assert len(stored) == 2 * LAYERS * (2 + 1 + 2 * 3)  # weights of both, an average, three tensors of Adam for both
    resumed, others = networks()
    rest = run_stage(STAGE, resumed, batch, seed=0, restore=lambda run: state.load(checkpoint, run, ONE))
    assert rest.records == records[2:]
    for role, other in ((roles.student, others.student), (roles.fake, others.fake)):
        assert all(torch.equal(one, another) for one, another in zip(values(role), values(other), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_merged_is_a_plain_transformer_of_the_same_pictures(dtype: torch.dtype) -> None:
    """Rounding apart, which is another where W + B A is rounded than where W x + B (A x) is: 137 dB seen in fp32, 311 in fp64."""
    roles = trained(adapted(transformer(dtype=dtype), LORA))
    x, t, cond = asked()
    x, t, cond = x.to(dtype), t.to(dtype), cond.to(x.to(dtype))
    before = roles.teacher(x, t, cond)
    weights = merged(roles.student)
    plain = transformer(seed=9, dtype=dtype)
    assert list(weights) == list(plain.state_dict())
    plain.load_state_dict(weights)
    with torch.no_grad():
        wanted, got = roles.student(x, t, cond), VelocityTransformer(plain)(x, t, cond)
    assert snr_db(wanted.numpy(), got.numpy()) >= (100 if dtype == torch.float32 else 280)
    assert snr_db(wanted.numpy(), before.numpy()) < 30
    assert torch.equal(roles.teacher(x, t, cond), before)
    assert weights["proj_out.weight"].data_ptr() == roles.transformer.proj_out.weight.data_ptr()


def test_a_base_in_bfloat16_is_merged_in_fp32() -> None:
    roles = trained(adapted(transformer(dtype=torch.bfloat16), LORA))
    weights = merged(roles.student)
    layer = roles.transformer.transformer_blocks[0].attn.to_q
    a, b = (part["student"].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
    wanted = layer.base_layer.weight.double() + LORA.alpha / LORA.rank * b @ a
    got = weights["transformer_blocks.0.attn.to_q.weight"]
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), wanted, rtol=0, atol=1e-6)  # bfloat16 would be off by 1e-3
    assert weights["transformer_blocks.0.attn.to_q.bias"].dtype == torch.bfloat16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(PRESETS["tiny"], tmp_path_factory.mktemp("tiny") / "student")


def test_the_file_draws_in_diffusers_as_the_merged_student_does(folder: Path, tmp_path: Path) -> None:
    """Latents of a real pipeline, two steps, fp32; alpha is not the rank, so that it has to be in the file."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
    roles = trained(adapted(pipeline.transformer, LORA))
    file = write_lora(tmp_path / "lora", roles.student)
    assert file.name == "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as stored:
        assert all(name.startswith("transformer.transformer_blocks.") for name in stored.keys())  # noqa: SIM118  # no mapping
        assert len(stored.keys()) == 2 * LAYERS
        assert json.loads(stored.metadata()["lora_adapter_metadata"])["transformer.lora_alpha"] == 6
    plain = transformer()
    plain.load_state_dict(merged(roles.student))
    teacher = SD3Transformer2DModel.from_pretrained(folder / "transformer")

    def drawn(network: Any) -> Any:
        pipeline.transformer = network
        return pipeline(
            "a red circle",
            height=64,
            width=64,
            num_inference_steps=2,
            guidance_scale=1,
            max_sequence_length=8,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images.numpy()

    pipeline.set_progress_bar_config(disable=True)
    wanted, without = drawn(plain), drawn(teacher)
    pipeline.load_lora_weights(tmp_path / "lora")
    assert snr_db(wanted, drawn(teacher)) >= 90
    assert snr_db(wanted, without) < 40


def test_a_build_refuses_it_beside_weights(folder: Path) -> None:
    file = write_lora(folder, adapted(transformer(), LORA).student)
    try:
        with pytest.raises(InputError, match="a LoRA lies beside the weights"):
            open_student(folder)
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("to_q", "attn.to_qq"), "targets: attn.to_qq: names no linear layer (expected the end of a name, such as attn.to_q"),
        (("pos_embed.proj",), "targets: pos_embed.proj: names no linear layer"),
        (("o_q",), "targets: o_q: names no linear layer (expected the end of a name, such as to_q"),
        ((), "targets: is empty (expected at least one end of a name)"),
    ],
    ids=["misspelt", "a convolution", "half a word", "none"],
)
def test_targets_that_name_nothing(targets: tuple[str, ...], said: str) -> None:
    plain = transformer()
    with pytest.raises(InputError) as error:
        adapted(plain, Lora(targets=targets))
    assert said in str(error.value)
    assert all(parameter.requires_grad for parameter in plain.parameters())  # as it was


def test_the_default_targets_fit_students_without_a_second_attention() -> None:
    names = targeted(
        [name for name, _ in _blocks(dual=0) if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))], Lora().targets[:4]
    )
    assert len(names) == 12


def _blocks(dual: int) -> list[tuple[str, Any]]:
    config = _transformer_config(PRESETS["tiny"]) | {"dual_attention_layers": list(range(dual))}
    return list(SD3Transformer2DModel.from_config(config).named_modules())


@pytest.mark.parametrize(
    ("prepared", "said"),
    [
        (lambda: transformer(dtype=torch.float16), "in fp16, where gradients of adapters vanish"),
        (lambda: adapted(transformer(), LORA).transformer, "has adapters already"),
    ],
    ids=["fp16", "twice"],
)
def test_transformers_that_are_not_adapted(prepared: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        adapted(prepared(), LORA)


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'flash-deploy\[distill\]'"):
        adapted(transformer(), LORA)
