"""The chosen profile as a file."""

from __future__ import annotations

import os
from pathlib import Path

from deploy.build.budget import fitting, in_bands
from deploy.build.plan import plan
from deploy.build.request import BuildRequest
from deploy.errors import InputError
from deploy.tune.choose import Tuned
from deploy.tune.tuning import TuneRequest
from quantization.files import check_writable, write_text
from quantization.folders import remove_tree
from quantization.profile import profile_toml


def check_profile_file(file: Path, force: bool, option: str = "-o") -> None:
    """Refuse a place that a profile cannot be written to, before the work.

    Args:
        file: where to.
        force: one that is there is replaced.
        option: that named it.

    Raises:
        InputError: it is there already, or its folder is not.
    """
    if file.is_dir() or (os.path.lexists(file) and not force):
        raise InputError(f"{file} is there already.", remedy="give another file, or --force to replace it")
    check_writable(file, option, "The profile cannot be written.")


def write_profile(tuned: Tuned, request: TuneRequest, file: Path) -> None:
    """Write the chosen profile, with what it is beside it."""
    measured = tuned.chosen.measured
    assert measured is not None
    prompts = "calibrated" if request.calibration is None else f"calibrated by {request.calibration.name}"
    comment = (
        f"Chosen by flash-deploy tune for {request.build.tier}: {tuned.chosen.size_bytes} bytes of weights, "
        f"pictures {measured.psnr_db:.1f} dB PSNR (5th percentile {measured.psnr_p5_db:.1f}).\n"
        f"Measured on {request.build.student.name}, {prompts}, seed {request.seed}. Build with --calibration for the same codes."
    )
    write_text(file, profile_toml(tuned.profile, comment))


def write_fitting_profile(request: BuildRequest, file: Path) -> None:
    """Write the profile that a bundle can be stored by, whether it is what was asked for or what fits in its place.

    Raises:
        InputError: the request cannot be fulfilled, with any profile that is known here.
    """
    settled = in_bands(plan(request))
    scheme, profile, sizes = fitting(settled)
    what = f"{scheme} for all, the largest scheme that fits" if scheme else "What was asked for"
    comment = (
        f"{what}: {sizes.stored_bytes / 1e9:.2f} GB of {settled.student.path.name}'s weights for "
        f"{request.tier}, {sizes.peak_bytes / 1e9:.2f} GB of memory, estimated."
    )
    write_text(file, profile_toml(profile, comment))


def remove_work(folder: Path) -> None:
    """Remove a working folder that is no longer needed."""
    remove_tree(folder)
