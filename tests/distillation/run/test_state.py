"""Checkpoints: whole or absent, and a run goes on from them bit for bit, with two processes too."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from distillation.batches import Networks
from distillation.loop import Run, run_stage
from distillation.run import state
from distillation.run.processes import Processes
from distillation.stages import FlowStage, MatchStage, Optimizer
from quantization.errors import InputError
from quantization.files import WritingError
from tests.distillation.gaussian import Linear, Teacher
from tests.distillation.resumed import Wide, check_it_goes_on, wide_batch
from tests.distillation.test_loop import LEVELS, Polynomial, batch, untrained

STAGE = MatchStage(name="s", steps=6, levels=LEVELS, fake_steps=1, average=0.5, optimizer=Optimizer(decay="linear"))
ONE = Processes()


def networks() -> Networks:
    return Networks(untrained(), Teacher(), Polynomial())


def trained_to(folder: Path, step: int) -> Networks:
    those = networks()

    def keep(run: Run, record: dict[str, float]) -> bool:
        state.save(folder, run, "me", ONE)
        return run.step == step

    run_stage(STAGE, those, batch, seed=0, on_step=keep)
    return those


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = networks()
    records = run_stage(STAGE, whole, batch, seed=0).records
    trained_to(tmp_path, 3)
    resumed = networks()
    checkpoint = state.latest(tmp_path, "me")
    assert checkpoint is not None
    rest = run_stage(STAGE, resumed, batch, seed=0, restore=lambda run: state.load(checkpoint, run, ONE))
    assert rest.records == records[3:]
    for one, other in zip(whole.student.parameters(), resumed.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_weight_of_two_names_is_held_once(tmp_path: Path) -> None:
    """As T5's embedding is: safetensors refuse it twice."""

    class Tied(Polynomial):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.coefficients

    check_it_goes_on(FlowStage(name="s", steps=4, average=0.5), Tied, batch, tmp_path, ONE)


class Coarse(torch.optim.Optimizer):
    """Its state is as bitsandbytes has it: a whole number that counts, bytes of a parameter's shape, a table of its own."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state |= {"step": 0, "state1": torch.zeros_like(parameter, dtype=torch.uint8), "qmap1": torch.linspace(0, 1, 256)}
            assert type(state["step"]) is int
            state["step"] += 1
            state["state1"] += 1
            parameter.sub_(self.param_groups[0]["lr"] * state["step"] * state["qmap1"][state["state1"].int()])


@pytest.mark.parametrize("real", [False, True], ids=["stand-in", "bitsandbytes"])
def test_an_optimizer_of_eight_bits_goes_on(tmp_path: Path, real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if real:
        pytest.importorskip("bitsandbytes", reason="comes with the extra [distill-gpu]")
    else:
        monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=Coarse))

    stage = FlowStage(name="s", steps=4, optimizer=Optimizer(kind="adamw8bit", learning_rate=1e-2))
    check_it_goes_on(stage, Wide, wide_batch, tmp_path, ONE)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    trained_to(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    trained_to(tmp_path, 1)
    names = {path.suffix for path in (tmp_path / "step-00000001").iterdir()}
    assert names == {".safetensors", ".json"}


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), WritingError, "No space left on device"),
        (SafetensorError("I/O error: No space left on device"), WritingError, "No space left on device"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
        (ZeroDivisionError("a defect"), ZeroDivisionError, "a defect"),
    ],
    ids=["disk", "disk, in safetensors", "Ctrl-C", "defect"],
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_what_fails_leaves_no_draft(
    tmp_path: Path, cause: BaseException, kind: type[BaseException], message: str, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch hands on what happened in an exception of its own, a Ctrl-C too; the checkpoint before stays."""
    trained_to(tmp_path, 1)

    def failing(tensors: object, storage_writer: Any, no_dist: bool) -> None:
        (Path(storage_writer.path) / "half").write_text("x")
        raise CheckpointException("write", {0: (cause, None)}) if wrapped else cause

    monkeypatch.setattr("distillation.run.state.save_tensors", failing)

    def keep(run: Run, record: dict[str, float]) -> None:
        if run.step > 1:
            state.save(tmp_path, run, "me", ONE)

    with pytest.raises(kind, match=message):
        run_stage(STAGE, networks(), batch, seed=0, on_step=keep)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert state.latest(tmp_path, "me") is not None


def test_what_was_being_written_is_not_taken(tmp_path: Path) -> None:
    trained_to(tmp_path, 2)
    (tmp_path / "step-00000002").rename(tmp_path / ".step-00000002.partial")
    (tmp_path / "step-00000009").mkdir()  # without its last file
    assert state.latest(tmp_path, "me") == tmp_path / "step-00000001"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / state.STATE).write_text("{"), "is damaged"),
        (lambda folder: (folder / state.STATE).write_text(json.dumps({"version": 9})), "of version 9"),
        (lambda folder: (folder / state.STATE).write_text("[]"), "is damaged"),
    ],
    ids=["cut", "newer", "another"],
)
def test_damaged_state(tmp_path: Path, damage: object, message: str) -> None:
    trained_to(tmp_path, 1)
    damage(tmp_path / "step-00000001")
    with pytest.raises(InputError, match=message):
        state.latest(tmp_path, "me")


def test_cut_tensors(tmp_path: Path) -> None:
    trained_to(tmp_path, 1)
    (file,) = (tmp_path / "step-00000001").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="is damaged"):
        run_stage(STAGE, networks(), batch, seed=0, restore=lambda run: state.load(tmp_path / "step-00000001", run, ONE))


def test_another_recipe_s_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    trained_to(tmp_path, 1)
    with pytest.raises(InputError, match="of another recipe, teacher or seed"):
        state.latest(tmp_path, "you")


def test_other_networks(tmp_path: Path) -> None:
    trained_to(tmp_path, 1)
    other = Networks(Linear((1.0, 0.75, 0.5, 0.0), [0.0] * 3, [0.0] * 3), Teacher(), Linear(LEVELS, [0.0] * 3, [0.0] * 3))
    with pytest.raises(InputError, match="is not of these networks"):
        run_stage(STAGE, other, batch, seed=0, restore=lambda run: state.load(tmp_path / "step-00000001", run, ONE))


TWO = """
import sys, torch
from pathlib import Path
from typing import Any
from torch import nn
from distillation.batches import Batch, Networks
from distillation.counters import Counter
from distillation.loop import run_stage
from distillation.run import state
from distillation.run.processes import Processes
from distillation.stages import FlowStage, Optimizer

folder, sharded = Path(sys.argv[1]), sys.argv[2] == "sharded"
processes = Processes.joined("cpu")
samples = processes.samples(8, "stage")
# Muon's three matrices are shared out unevenly; sharded weights are AdamW's.
kind = Optimizer(learning_rate=0.01) if sharded else Optimizer(kind="muon", learning_rate=0.01, matrix_learning_rate=0.01)
stage = FlowStage(name="s", steps=4, batch=8, optimizer=kind, average=0.9)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    def forward(self, x, t, cond):
        for block in self.blocks:
            x = x + torch.tanh(block(x)) * t[:, None]
        return x

def batch(step):
    place, like = Counter(0, "s", step, samples), torch.zeros(())
    return Batch(noise=place.normal("start", (8,), like), x0=place.normal("data", (8,), like), samples=samples)

def run(place, stop):
    torch.manual_seed(0)
    net = Net()
    if sharded and processes.count > 1:
        processes.shard(net, net.blocks)
    checkpoint = state.latest(place, "me")

    def restore(run):
        if checkpoint:
            state.load(checkpoint, run, processes)

    def on_step(run, record):
        state.save(place, run, "me", processes)
        return processes.agreed(run.step == stop and processes.first)

    outcome = run_stage(stage, Networks(net), batch, 0, restore=restore, on_step=on_step)
    whole = [p.full_tensor() if sharded and processes.count > 1 else p for p in net.parameters()]
    weights = torch.cat([p.detach().flatten() for p in whole])
    if processes.first:
        print(outcome.steps, *(f"{value:.9g}" for value in weights.tolist()))

run(folder / "whole", 0)
if processes.count > 1:
    run(folder / "stopped", 2)
    run(folder / "stopped", 0)
processes.end()
"""


def weights_after(folder: Path, count: int, kind: str) -> list[tuple[int, torch.Tensor]]:
    """Steps and weights after a whole run; of two processes also after one that stops, and after it has gone on."""
    script = folder / "two.py"
    folder.mkdir(exist_ok=True)
    script.write_text(TWO)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, str(script), str(folder / "state"), kind]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.split() for line in run.stdout.splitlines() if line[:1].isdigit()]
    return [(int(steps), torch.tensor([float(value) for value in values])) for steps, *values in lines]


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_two_processes_are_one_and_go_on(tmp_path: Path, kind: str) -> None:
    """The same weights from two as from one to 1e-5 (sums of fp32 in another order); stopped and resumed, bit for bit."""
    ((_, alone),) = weights_after(tmp_path / "one", 1, kind)
    (steps, both), (stopped, _), (last, resumed) = weights_after(tmp_path / "two", 2, kind)
    assert (steps, stopped, last) == (4, 2, 4)
    assert torch.allclose(alone, both, atol=1e-5)
    assert torch.equal(both, resumed)
