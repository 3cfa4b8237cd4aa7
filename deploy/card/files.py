"""The page of a bundle and its pictures, as files: where they may be, and written all or none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from deploy.bundle.folder import PAGE, PICTURES, Bundle
from deploy.card.text import Sample
from deploy.errors import Complaint, InputError
from deploy.runtime.eight_bit import to_8_bit
from deploy.runtime.pictures import write_picture
from quantization.files import check_writable, write_text, writing

HEADLINE = "The page cannot be written."


class CardFiles:
    """Where a page and its pictures go.

    Args:
        bundle: the bundle that the page is of.
        file: the page.
        count: how many pictures there will be.
        force: replace a page and pictures that are there.

    Raises:
        InputError: something is there, the bundle would not be good with it, or the place cannot be written to.
    """

    def __init__(self, bundle: Bundle, file: Path, count: int, force: bool) -> None:
        self.file, self._folder = file, file.parent / PICTURES
        self._prefix = self._check_place(bundle)
        self.pictures = [self._folder / f"{self._prefix}{i}.png" for i in range(count)]
        check_writable(file, "-o", HEADLINE)
        there = [path for path in (file, *self.pictures) if os.path.lexists(path)]
        if there and not force:
            complaints = [Complaint(str(path), "is there already") for path in there]
            raise InputError(HEADLINE, complaints, "give another file, or --force to replace them")
        if os.path.lexists(self._folder) and (self._folder.is_symlink() or not self._folder.is_dir()):
            raise InputError(HEADLINE, [Complaint(str(self._folder), "is no folder for pictures")], "move it away")

    def _check_place(self, bundle: Bundle) -> str:
        """What names of pictures begin with: a page outside of the bundle may share its folder with others."""
        home, place = Path(os.path.realpath(bundle.folder)), Path(os.path.realpath(self.file.parent)) / self.file.name
        if not place.is_relative_to(home):
            if (folder := place.parent / PICTURES).is_relative_to(home):
                complaint = Complaint(str(folder), "would have the page's pictures, and is in the bundle")
                raise InputError(HEADLINE, [complaint], "give a file in another folder")
            return re.sub(r"[^\w-]+", "-", self.file.stem, flags=re.ASCII).strip("-") + "-"
        own = any(record.path == PAGE for record in bundle.manifest.files)
        if own or place != home / PAGE:
            what = "is in the bundle, of which `verify` would complain" if place != home / PAGE else "is the bundle's own"
            expected = "a file outside of the bundle" if own else f"{PAGE}, or a file outside of the bundle"
            raise InputError(HEADLINE, [Complaint("-o", what, expected, str(self.file))], "give another file")
        return ""

    def samples(self, prompts: tuple[str, ...], seed: int) -> list[Sample]:
        """The pictures as the page names them; picture i has the seed ``seed + i``."""
        names = [path.relative_to(self.file.parent).as_posix() for path in self.pictures]
        return [Sample(name, prompt, seed + i) for i, (name, prompt) in enumerate(zip(names, prompts, strict=True))]

    def write(self, text: str, drawn: list[np.ndarray]) -> list[Path]:
        """Write pictures ``[height, width, 3]`` in [0, 1] and then the page; what was new goes again if anything fails.

        Raises:
            InputError: the disk is full, or a file cannot be written after all.
        """
        new = [path for path in (self.file, *self.pictures) if not os.path.lexists(path)]
        new_folder = bool(drawn) and not self._folder.exists()
        try:
            if new_folder:
                with writing(self._folder):
                    self._folder.mkdir()
            for picture, path in zip(drawn, self.pictures, strict=True):
                write_picture(path, to_8_bit(picture))
            write_text(self.file, text)
        except BaseException:
            for path in new:
                path.unlink(missing_ok=True)
            if new_folder and self._folder.is_dir() and not any(self._folder.iterdir()):
                self._folder.rmdir()
            raise
        self._remove_older()
        return [self.file, *self.pictures]

    def _remove_older(self) -> None:
        """Pictures of an older page that had more of them."""
        for path in self._folder.glob(f"{self._prefix}*.png") if self._folder.is_dir() else ():
            if re.fullmatch(r"\d+", path.stem.removeprefix(self._prefix)) and path not in self.pictures:
                path.unlink()
