"""What a small decoder costs: pictures beside those of the VAE that it stands for, of the same latents.

    flash-deploy distill shapes-extras --set extends=shapes-gpu.toml --take-up builtin -o RUN
    python -m benchmarks.studies.vae.small_decoder RUN/decoder [STUDENT] [--prompts 3000]

The student draws captions of the world that it learned in; its own VAE and the other student's decode the latents.
Multiplications are those of one picture's decoding, as torch counts them: of convolutions and matrix products.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.quality.paired import PairedDifference, paired_difference
from benchmarks.studies.distilled.captions import Captions
from benchmarks.studies.distilled.run_folder import student
from benchmarks.studies.distilled.tables import points
from distillation.networks.drawing import decode
from distillation.run.lineage import Lineage
from exporters.quiet import quiet_libraries
from exporters.reference.decibels import psnr_db
from exporters.student.open import open_student
from exporters.student.student import BUILTIN_STUDENT
from quantization.errors import InputError

BATCH = 50


@dataclass(frozen=True)
class Compared:
    """A small decoder beside a VAE.

    Attributes:
        multiplications: of both, for one picture: the VAE's first.
        psnr_db: of each picture against the VAE's.
        right: how the share of right pictures differs.
    """

    multiplications: tuple[int, int]
    psnr_db: np.ndarray
    right: PairedDifference

    def __str__(self) -> str:
        """A line for each."""
        (vae, small), psnr, right = self.multiplications, self.psnr_db, self.right
        told = f"{points(right.difference, right.low, right.high)} points; {right.lost} lost, {right.won} won"
        lines = (
            f"multiplications: {small / 1e6:.1f} of {vae / 1e6:.1f} millions, {small / vae:.3f}",
            f"pictures: {psnr.mean():.1f} dB (PSNR, mean of {psnr.size}), the worst {psnr.min():.1f} dB",
            f"right: {right.share:.1%} (VAE {right.reference_share:.1%}): {told}",
        )
        return "\n".join(lines)


@torch.no_grad()
def compare(drawing: Path, decoding: Path, prompts: int) -> Compared:
    """Decode what a student draws with its own VAE and with another student's.

    Args:
        drawing: the student's folder.
        decoding: the other's.
        prompts: how many captions.

    Raises:
        InputError: a student cannot be opened, or does not say its levels.
    """
    captions = Captions()
    draw = student(drawing).open(captions)
    vae, small = (Lineage(open_student(folder), (), 0).component("vae") for folder in (drawing, decoding))
    psnr, verdicts = [], []
    for first in range(0, prompts, BATCH):
        numbers = range(first, min(first + BATCH, prompts))
        scenes = captions.those(numbers)
        pictures, latents = draw(scenes, numbers)
        assert latents is not None
        given = torch.from_numpy(latents)
        others = decode(small, given).permute(0, 2, 3, 1).numpy()
        for own, other, scene in zip(pictures, others, scenes, strict=True):
            psnr.append(psnr_db(own, other))
            verdicts.append((captions.verdict(own, scene)[0], captions.verdict(other, scene)[0]))
    multiplications = (_multiplications(vae, given[:1]), _multiplications(small, given[:1]))
    return Compared(multiplications, np.array(psnr), paired_difference(*np.array(verdicts).T))


def _multiplications(vae: Any, latents: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        decode(vae, latents)
    return int(counter.get_total_flops()) // 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what it comes to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder", type=Path, help="folder of the student that has the small decoder")
    parser.add_argument("student", type=Path, nargs="?", default=BUILTIN_STUDENT, help="who draws; the built-in one by default")
    parser.add_argument("--prompts", type=int, default=3000, help="captions that are drawn")
    given = parser.parse_args(arguments)
    if given.prompts < 1:
        parser.error("--prompts is at least 1")
    quiet_libraries()
    try:
        print(compare(given.student, given.decoder, given.prompts))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
