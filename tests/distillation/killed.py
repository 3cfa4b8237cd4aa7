"""Kill a run with SIGKILL again and again at random moments, and see that it comes to what an undisturbed one comes to.

``python -m tests.distillation.killed --times 50``
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from distillation.run.order import Order
from tests.distillation.run.forked import LONGEST_S, begin
from tests.distillation.run.tiny import BRANCHES, RECIPE, STUDENT, content, half_written, lay_out


def run_and_kill(order: Order, times: int, chance: random.Random, longest_s: float) -> int:
    """A run that is killed so many times, if it lives so long, and is then let go to its end.

    Args:
        order: the run.
        times: of SIGKILL.
        chance: that the moments are drawn from.
        longest_s: until a start is killed, in seconds; the moments are spread evenly up to it.

    Returns:
        How many times it was killed before its end.
    """
    killed = 0
    said = order.out.with_name(f"{order.out.name}.said")
    for _ in range(times):
        process = begin(order, said)
        process.join(chance.uniform(0, longest_s))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9, said.read_text()
        killed += 1
    process = begin(order, said)
    process.join(10 * LONGEST_S)
    assert process.exitcode == 0, said.read_text()
    return killed


def main() -> None:
    """Kill, compare, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds until a start is killed, at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, chance, killed = Path(place), random.Random(given.seed), 0  # no secret
        order = lay_out(folder, RECIPE + STUDENT + BRANCHES)
        whole = replace(order, out=folder / "whole")
        run_and_kill(whole, 0, chance, 0)
        leave_out = ("metrics.jsonl", "tensorboard", "stage.json", "recipe.json")
        wanted = content(whole.out, leave_out)
        runs = 0
        while killed < given.times:
            runs += 1
            disturbed = replace(order, out=folder / f"run-{runs}", changes=("checkpoint_seconds=1e-6",))
            killed += run_and_kill(disturbed, given.times - killed, chance, given.longest)
            got = content(disturbed.out, leave_out)
            wrong = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
            wrong += half_written(disturbed.out)
            print(f"run {runs}: {killed} of {given.times} kills, {len(got)} files, {len(wrong)} wrong", flush=True)
            if wrong:
                sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
