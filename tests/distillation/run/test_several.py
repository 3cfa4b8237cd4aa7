"""Two processes give what one gives, stop together, and of what fails in one alone there is one message."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distillation.run import start
from distillation.run.order import Order
from distillation.run.signals import Stop
from exporters.errors import InputError
from tests.distillation.run.forked import together
from tests.distillation.run.tiny import RECIPE, STUDENT, content, half_written, metrics

SHORT = RECIPE.replace("judged = 2", "judged = 0")


def weights(folder: Path, stage: str) -> torch.Tensor:
    (file,) = folder.glob(f"stages/{stage}-*/result/transformer/*.safetensors")
    return torch.cat([tensor.flatten() for tensor in load_file(file).values()])


@pytest.fixture(scope="module")
def alone(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Order:
    (given / "short.toml").write_text(SHORT + STUDENT)
    order = Order(str(given / "short.toml"), given / "teacher", tmp_path_factory.mktemp("alone") / "run", device="cpu")
    assert start.follow(order) == 0
    return order


@pytest.fixture(scope="module")
def both(alone: Order, tmp_path_factory: pytest.TempPathFactory) -> Order:
    folder = tmp_path_factory.mktemp("both")
    order = replace(alone, out=folder / "run")
    told = together(order, folder)
    assert told.codes == [0, 0], told.said
    assert told.said[1] == ""
    return order


def assert_near(one: Path, other: Path) -> None:
    """Gradients are sums of fp32 in another order, off by some 1e-7 of their size. Adam divides by their size: where a gradient
    is nothing but such an error a weight goes up to a learning rate the other way, 4 steps of 1e-3 and less at most; all others
    go on from each other by a thousandth of that. The middle of all weights is held to 1e-7, and their mean to 1e-5."""
    for stage in ("follow", "match"):
        difference = (weights(one, stage) - weights(other, stage)).abs()
        assert float(difference.max()) < 8e-3
        assert float(difference.mean()) < 1e-5
        assert float(difference.median()) < 1e-7


def test_two_processes_are_one(alone: Order, both: Order) -> None:
    assert_near(alone.out, both.out)
    here, there = content(alone.out).keys(), content(both.out).keys()
    assert here == there
    assert half_written(both.out) == []
    for stage in ("follow", "match"):
        assert [line["step"] for line in metrics(both.out, stage)] == [line["step"] for line in metrics(alone.out, stage)]


def test_another_seed_is_told_from_it(alone: Order, both: Order, tmp_path: Path) -> None:
    order = replace(alone, out=tmp_path / "run", changes=("seed=1",))
    assert start.follow(order) == 0
    with pytest.raises(AssertionError):
        assert_near(order.out, both.out)


def test_two_processes_stop_and_go_on_bit_for_bit(both: Order, tmp_path: Path) -> None:
    """A checkpoint after every step, and a wish to stop that reaches the second process alone, in the middle of a stage."""
    order = replace(both, out=tmp_path / "run", changes=("checkpoint_seconds=1e-6",), stop_after="follow")
    told = together(order, tmp_path, asked_at=("follow", 2))
    assert told.codes == [130, 130], told.said
    assert "stopped after step 2 of 4" in told.said[0]
    told = together(order, tmp_path)
    assert told.codes == [0, 0], told.said
    assert "goes on from step 2" in told.said[0]
    assert torch.equal(weights(order.out, "follow"), weights(both.out, "follow"))
    assert metrics(order.out, "follow") == metrics(both.out, "follow")
    assert half_written(order.out) == []


def test_two_processes_judge_together(alone: Order, tmp_path: Path) -> None:
    """The same student, by 110 prompts in batches of 50, two and one: sums of fp32 in another order, 1e-5 dB. A wish to stop that
    reaches the second process alone, at a batch's end, ends both."""
    one, two = (
        replace(alone, out=shutil.copytree(alone.out, tmp_path / name), changes=("judged=110",), stop_after="follow")
        for name in ("one", "two")
    )
    assert start.follow(one) == 0
    told = together(two, tmp_path, asked_at=("judging", 100))
    assert told.codes == [130, 130], told.said
    assert not list(two.out.glob("stages/*/judged.json"))
    told = together(two, tmp_path)
    assert told.codes == [0, 0], told.said
    (here, there) = (json.loads(next(order.out.glob("stages/follow-*/judged.json")).read_text()) for order in (one, two))
    assert here["prompts"] == there["prompts"] == 110
    assert here["latent_db"] == pytest.approx(there["latent_db"], abs=1e-4)
    assert content(one.out).keys() == content(two.out).keys()


def test_shared_out_networks(alone: Order, tmp_path: Path) -> None:
    order = replace(alone, out=tmp_path / "run", changes=("shard=true",))
    told = together(order, tmp_path)
    assert told.codes == [0, 0], told.said
    assert_near(alone.out, order.out)


def test_shared_out_networks_draw_together(alone: Order, tmp_path: Path) -> None:
    """The one file of trajectories is the first process's: without the second it cannot compute it, with half a teacher."""
    order = replace(alone, out=tmp_path / "run", changes=("shard=true", "follow.trajectories=4"), stop_after="follow")
    told = together(order, tmp_path)
    assert told.codes == [0, 0], told.said
    assert [line["step"] for line in metrics(order.out, "follow")] == [1, 2, 3, 4]
    whole = replace(order, out=tmp_path / "whole", changes=("follow.trajectories=4",))
    assert start.follow(whole) == 0
    assert float((weights(order.out, "follow") - weights(whole.out, "follow")).abs().mean()) < 1e-5  # as assert_near


def test_one_message_of_what_fails_in_one_process(alone: Order, tmp_path: Path) -> None:
    """The second file of trajectories is the second process's, and cannot be read; the first has nothing to complain of."""
    order = replace(alone, out=tmp_path / "run")
    (folder,) = alone.out.glob("cache/*")
    (order.out / "cache" / folder.name).mkdir(parents=True)
    for file in folder.iterdir():
        place = order.out / "cache" / folder.name / file.name
        if file.name.startswith("00000064"):
            place.with_name(place.name).mkdir()  # a folder in a file's place
    told = together(order, tmp_path)
    assert 2 in told.codes, told.said
    assert {*told.codes} <= {2, 70}, told.said
    assert not any("Traceback" in said for said in told.said)
    assert "damaged" in "".join(told.said)


def test_a_batch_that_cannot_be_shared(alone: Order, tmp_path: Path) -> None:
    told = together(replace(alone, out=tmp_path / "run", changes=("match.batch=3",)), tmp_path)
    assert told.codes[0] == 2
    assert "stage match: a batch of 3 cannot be shared by 2 processes" in told.said[0]
    assert not (tmp_path / "run").exists()


CHILD = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
code, wait, said = sys.argv[1 + rank].split(",")
signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
time.sleep(float(wait))
if said:
    sys.stderr.write(said + "\\n")
os._exit(int(code))
"""


@pytest.mark.parametrize(
    ("first", "second", "code", "said"),
    [
        ("0,0,", "0,0,", 0, ""),
        ("2,0,error: bad", "2,0,error: bad", 2, "error: bad\n"),
        ("70,.3,", "2,0,error: a shard", 2, "error: a shard\n"),
        ("0,60,", "2,0,error: a shard", 2, "error: a shard\n"),
        ("2,0,error: a disk", "70,.3,", 2, "error: a disk\n"),
        ("130,0,interrupted", "130,0,", 130, "interrupted\n"),
        ("130,0,interrupted", "70,.3,", 130, "interrupted\n"),
        ("1,0,Traceback", "0,60,", 1, "Traceback\n"),
    ],
    ids=["done", "both", "the second", "the second, first at work", "the first", "stopped", "stopped and left", "a defect"],
)
def test_what_several_processes_come_to(
    first: str, second: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "GRACE_SECONDS", 0.6)
    assert start.spread([sys.executable, "-c", CHILD, first, second], 2) == code
    assert capfd.readouterr().err == said


def test_a_wish_to_stop_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    assert start.spread([sys.executable, "-c", CHILD, "0,60,", "0,60,"], 2) == 130
    timer.join()
    assert capfd.readouterr().err == ""


def test_a_process_whose_parent_is_gone_is_asked_to_stop() -> None:
    assert not Stop().asked
    assert not Stop(parent=os.getppid()).asked
    assert Stop(parent=1 << 30).asked


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("nobody-has-this --x", "nobody-has-this"),
        ("'torchrun", "No closing quotation"),
        ("  ", "is empty"),
        ("/", "Permission denied"),
    ],
)
def test_launchers_that_cannot_be_started(alone: Order, prefix: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        start.begin(alone, prefix)
    assert "--launch" in str(caught.value)


def test_torchrun_starts_a_run(alone: Order, tmp_path: Path) -> None:
    order = replace(alone, out=tmp_path / "run", stop_after="follow")
    command = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    assert start.begin(order, command) == 0
    assert abs(weights(order.out, "follow") - weights(alone.out, "follow")).mean() < 1e-5


@pytest.mark.parametrize(
    ("processes", "cores", "device", "count"),
    [(2, 2, "cpu", 2), (4, 2, "cpu", 2), (2, 2, "", 2), (1, 2, "cpu", 0), (2, 1, "cpu", 0)],
)
def test_a_recipe_s_processes_are_started(
    alone: Order, processes: int, cores: int, device: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU as many as it has cores, at most; one of them is this process."""
    called = []
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(start, "spread", lambda command, count: called.append((command, count)) or 0)
    monkeypatch.setattr(start, "follow", lambda order: 0)
    order = replace(alone, changes=(f"processes={processes}",), device=device)
    assert start.begin(order) == 0
    assert called == ([([sys.executable, "-m", "distillation", *order.arguments()], count)] if count else [])


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_in_the_folder_is_refused(alone: Order, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    order = replace(alone, out=tmp_path / "run")
    order.out.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(order.out / ".lock")], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="Another run is at work in this folder"):
            start.follow(order)
        assert [place.name for place in order.out.iterdir()] == [".lock"]
        other.kill()
    assert start.follow(replace(order, stop_after="follow")) == 0
