"""What a picture was drawn with, written into its PNG file and read from it.

As text under ``parameters``, in the form that other programs show (AUTOMATIC1111's), and as JSON under ``flash-deploy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploy.bundle.manifest import Manifest
from deploy.errors import Complaint, InputError
from exporters.guidance import Guidance
from exporters.image_to_image import DEFAULT_STRENGTH
from quantization.errors import printable

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

KEY, TEXT = "flash-deploy", "parameters"
LARGEST = 1 << 20


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a picture was drawn with.

    Attributes:
        prompt: what was asked for.
        seed: of its noise; none where latents were given.
        image: which of the seed's pictures it is, from 0.
        noise: whose noise the seed means.
        height: in pixels.
        width: likewise.
        sampler: how it was stepped.
        sigmas: noise levels.
        guidance_scale: 1 for none.
        negative_prompt: what it was guided away from.
        student: name of the bundle's.
        fingerprint: of the student.
        tier: of the bundle.
        runtime: what ran the graphs.
        version: of this program.
        upon: name of the file that was drawn upon; none where there was none.
        strength: of the schedule's steps, the share that was made upon it.
        mask: name of the mask's file.
    """

    prompt: str
    seed: int | None
    image: int
    noise: str
    height: int
    width: int
    sampler: str
    sigmas: tuple[float, ...]
    guidance_scale: float
    negative_prompt: str
    student: str
    fingerprint: str
    tier: str
    runtime: str
    version: str
    upon: str | None = None
    strength: float | None = None
    mask: str | None = None

    def text(self) -> str:
        """As other programs write it."""
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        facts = {
            "Steps": len(self.sigmas) - 1,
            "Sampler": self.sampler,
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed if self.seed is not None else "given latents",
            "Size": f"{self.width}x{self.height}",
            **({} if self.strength is None else {"Denoising strength": f"{self.strength:g}"}),
            "Model": self.student,
            "Version": f"{KEY} {self.version}",
        }
        return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])

    def png_info(self) -> PngInfo:
        """The chunks of a PNG file."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt(TEXT, self.text())
        info.add_itxt(KEY, msgspec.json.encode(self).decode())
        return info


def told_of(manifest: Manifest, guided: Sequence[tuple[str, Guidance]], shape: Sequence[int], **circumstances: Any) -> list[Told]:
    """What the pictures of one call were drawn with, the first prompt's first.

    Args:
        manifest: of the bundle.
        guided: each prompt, and how its pictures are guided.
        shape: of the pictures, ``[images, height, width, 3]``.
        circumstances: ``seed`` (none where latents were given), ``noise``, ``runtime`` and the rest of :class:`Told`.
    """
    student, sampling = manifest.student, manifest.sampling
    return [
        Told(
            prompt=prompt,
            image=image,
            height=shape[1],
            width=shape[2],
            sampler=sampling.method,
            sigmas=sampling.sigmas,
            guidance_scale=guidance.guidance_scale if guidance.on else 1.0,
            negative_prompt=guidance.negative_prompt if guidance.on else "",
            student=student.name,
            fingerprint=student.fingerprint,
            tier=manifest.tier,
            version=metadata.version(KEY),
            **circumstances,
        )
        for prompt, guidance in guided
        for image in range(shape[0] // len(guided))
    ]


def told_upon(image: Path, strength: float | None, mask: Path | None) -> dict[str, object]:
    """What a picture that was drawn upon another says of that, by the names of :class:`Told`."""
    return {
        "upon": printable(image.name),
        "strength": DEFAULT_STRENGTH if strength is None else strength,
        "mask": None if mask is None else printable(mask.name),
    }


def read_told(file: Path) -> Told:
    """What a PNG file says that it was drawn with.

    Raises:
        InputError: it is no picture, or does not say it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=["PNG"]) as picture:
            picture.load()  # chunks may follow the pixels
            text = getattr(picture, "text", {}).get(KEY)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        complaint = Complaint(str(file), printable(str(error)), "a PNG file")
        raise InputError("The picture cannot be read.", [complaint]) from error
    if text is None:
        complaint = Complaint(str(file), "does not say what it was drawn with", f"text under {KEY}")
        raise InputError("The picture says nothing of itself.", [complaint], "`generate` writes it, into PNG files")
    try:
        return msgspec.json.decode(str(text)[:LARGEST], type=Told)
    except msgspec.MsgspecError as error:
        complaint = Complaint(str(file), printable(str(error)), f"what {KEY} writes")
        raise InputError("What the picture says of itself is damaged.", [complaint]) from error
