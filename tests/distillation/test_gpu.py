"""On a GPU the same is learned as on a CPU: these tests need one, and are left out without."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from distillation.counters import Counter
from distillation.networks.conditioning import Conditioning
from distillation.networks.roles import VelocityTransformer
from distillation.run.processes import Processes
from distillation.stages import FlowStage, Optimizer
from exporters.reference.decibels import snr_db
from tests.distillation.networks.test_adapters import asked, transformer
from tests.distillation.resumed import Wide, check_it_goes_on, wide_batch
from tests.distillation.run.tiny import metrics, stages
from tests.helpers.shapes_run import follow_shapes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON = Processes(device="cuda")


def there(cond: Conditioning) -> Conditioning:
    return cond.to(torch.zeros((), device="cuda"))


def test_random_numbers_are_those_of_a_cpu() -> None:
    """Whole numbers exactly; logarithm and cosine in float64 are off by some of its last bits, so fp32 by its last at most."""
    place = Counter(3, "stage", 7, range(1000, 1064))
    wanted, got = (place.normal("noise", (16, 8, 8), torch.zeros((), device=device)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(got.cpu(), wanted, rtol=2.0**-22, atol=2.0**-40)


@pytest.mark.parametrize(
    ("changes", "last", "apart"),
    [
        ((), "w4", 1e-2),  # TF32 of convolutions: 2^-11 a product, and sums of hundreds of them partly cancel
        (("half=true", "checkpointing=true"), "w4", 5e-2),  # bfloat16: 2^-9 a product
        (("half=true", "compile=true"), "follow-4", 5e-2),
    ],
    ids=["fp32", "bfloat16, checkpointed", "bfloat16, compiled"],
)
def test_the_world_s_recipe_learns_the_same(
    changes: tuple[str, ...], last: str, apart: float, shapes_run: Path, tmp_path: Path
) -> None:
    """The first losses of each stage, from networks that all begin alike or by the same few steps.

    Some are squares of differences that are smaller than what rounding adds to them: its own square is what those may be off.
    """
    follow_shapes(tmp_path / "run", changes=changes, device="cuda", stop_after=last)
    made = stages(tmp_path / "run")
    assert last in made
    for stage in made.keys() - {"split-4"}:  # which makes no steps
        wanted, got = metrics(shapes_run, stage)[0], metrics(tmp_path / "run", stage)[0]
        assert wanted.keys() == got.keys()
        for name in (name for name in wanted if name.endswith("loss")):
            assert math.isfinite(got[name])
            assert got[name] == pytest.approx(wanted[name], rel=apart, abs=apart**2), (stage, name)


@pytest.mark.parametrize("kind", ["adamw", "muon", "adamw8bit"])
def test_a_stage_goes_on(kind: Any, tmp_path: Path) -> None:
    """Bit for bit: nothing here sums in an order of its own."""
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="comes with the extra [distill-gpu]")
    stage = FlowStage(name="s", steps=4, average=0.5, optimizer=Optimizer(kind=kind, learning_rate=1e-2))

    like = torch.zeros((), device="cuda")
    check_it_goes_on(stage, lambda: Wide().to(like), lambda step: wide_batch(step).to(like), tmp_path, ON)


def test_a_sharded_network_says_the_same(tmp_path: Path) -> None:
    """fully_shard over NCCL, in bfloat16: 8 bits, 48 dB a product, less what some layers add up. Another network is far off."""
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        plain = transformer().cuda()
        sharded = copy.deepcopy(plain)
        x, t, cond = asked()
        x, t, cond = x.cuda(), t.cuda(), there(cond)
        ON.shard(sharded, sharded.transformer_blocks, half=True)
        network = VelocityTransformer(sharded, half=True)
        got = network(x, t, cond)
        got.square().mean().backward()
        with torch.no_grad():
            wanted = VelocityTransformer(plain)(x, t, cond)
            other = VelocityTransformer(transformer(1).cuda())(x, t, cond)
        assert snr_db(wanted.cpu().numpy(), got.detach().cpu().numpy()) > 30
        assert snr_db(wanted.cpu().numpy(), other.cpu().numpy()) < 10
        learned = [p.grad.full_tensor() for p in sharded.parameters() if p.grad is not None]
        assert learned
        assert all(bool(gradient.isfinite().all()) for gradient in learned)
        tensors = ON.whole(network)
        assert all(torch.equal(tensors[f"transformer.{name}"].cpu(), each.cpu()) for name, each in plain.state_dict().items())
    finally:
        torch.distributed.destroy_process_group()
