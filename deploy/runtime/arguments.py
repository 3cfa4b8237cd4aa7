"""What a pipeline is asked for: the types of its arguments, and what is refused before any graph is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import TypedDict, get_args

import msgspec
import numpy as np

from deploy.bundle.manifest import Manifest, PictureRecord
from deploy.errors import Complaint, InputError
from deploy.runtime.noise import Noise
from deploy.runtime.upon import Picture
from exporters.guidance import Guidance, settled_guidance

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many parts are done and how many there are."""
StepCallback = Callable[[int, int, np.ndarray], None]
"""Called after each step of each picture with the step (from 0), how many steps a picture has, and the latents after it."""
PreviewCallback = Callable[[int, int, np.ndarray], None]
"""Called after each step of each picture with the step, how many steps there are, and what the picture would be,
``[height, width, 3]``."""
LEAST = {"seed": 0, "num_images": 1}
HEADLINE = "The pictures cannot be drawn."


class GuidanceOptions(TypedDict, total=False):
    """How pictures are guided, in place of how the bundle says (:class:`exporters.guidance.Guidance`)."""

    guidance_scale: float | None
    negative_prompt: str | Sequence[str] | None
    guidance_interval: tuple[float, float] | None
    skip_guidance_layers: Sequence[int] | None
    skip_layer_guidance_scale: float | None
    skip_layer_guidance_start: float | None
    skip_layer_guidance_stop: float | None


class DrawingOptions(GuidanceOptions, total=False):
    """What :meth:`deploy.runtime.Pipeline.generate` takes by name alone; it says what each is."""

    image: Picture | None
    strength: float | None
    mask: Picture | None
    step_noise: np.ndarray | None
    progress: Progress | None
    noise: Noise
    callback: StepCallback | None
    previews: PreviewCallback | None


def check_choices(numbers: Mapping[str, int], noise: Noise) -> None:
    """Refuse numbers that are none, and noise that nobody makes.

    Args:
        numbers: arguments by their names, :data:`LEAST`'s among them.
        noise: whose noise is wanted.

    Raises:
        InputError: with a complaint for each.
    """
    complaints = [
        Complaint(name, "wrong", f"a whole number of at least {LEAST[name]}", repr(value))
        for name, value in numbers.items()
        if not is_whole(value) or value < LEAST[name]
    ]
    if noise not in get_args(Noise):
        complaints.append(Complaint("noise", "unknown", " or ".join(get_args(Noise)), repr(noise)))
    if complaints:
        raise InputError(HEADLINE, complaints)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, numpy's too; a truth value is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def listed_prompts(prompt: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt or several as several.

    Raises:
        InputError: there are none, or one is not text that UTF-8 can hold.
    """
    if isinstance(prompt, str):
        return (checked_prompt(prompt),)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        complaint = Complaint("prompt", "is not text", "a string, or a list of strings", type(prompt).__name__)
        raise InputError(HEADLINE, [complaint])
    if not prompt:
        raise InputError(HEADLINE, [Complaint("prompt", "is an empty list", "at least one prompt")])
    wrong = [
        Complaint(f"prompt[{i}]", "is not text", "a string", type(one).__name__)
        for i, one in enumerate(prompt)
        if not isinstance(one, str)
    ]
    if wrong:
        raise InputError(HEADLINE, wrong)
    return tuple(map(checked_prompt, prompt))


def checked_prompt(prompt: str) -> str:
    """A prompt as it is.

    Raises:
        InputError: it is not text that UTF-8 can hold.
    """
    if not isinstance(prompt, str):
        raise InputError("The prompt cannot be read.", [Complaint("prompt", "is not text", "a string", type(prompt).__name__)])
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        complaint = Complaint("PROMPT", f"is not UTF-8: {error.reason}, at character {error.start}")
        raise InputError("The prompt cannot be read.", [complaint], "give it in UTF-8") from None
    return prompt


def guidance_of(manifest: Manifest, options: Mapping[str, object], prompts: int) -> list[Guidance]:
    """How the pictures of each prompt are guided.

    Args:
        manifest: of the bundle, which says what is not said here.
        options: :class:`GuidanceOptions`.
        prompts: how many there are.

    Raises:
        InputError: a value is wrong, or does not fit the bundle.
        TypeError: there is no such option.
    """
    if strangers := options.keys() - GuidanceOptions.__annotations__.keys():
        raise TypeError(f"generate() got an unexpected keyword argument {min(strangers)!r}")
    negative = options.get("negative_prompt")
    negatives: Sequence[object] = [negative] * prompts
    if isinstance(negative, Sequence) and not isinstance(negative, str | bytes):
        negatives = negative
    if len(negatives) != prompts:
        complaint = Complaint("negative_prompt", "are not as many as prompts", str(prompts), str(len(negatives)))
        raise InputError(HEADLINE, [complaint], "give one for all, or one for each prompt")
    own = msgspec.structs.asdict(manifest.sampling.guidance)
    layers = manifest.blocks.num_layers if manifest.blocks else None
    guided = [settled_guidance({**options, "negative_prompt": one}, own, layers) for one in negatives]
    if manifest.layout == "swift" and any(one.on for one in guided) and not manifest.sampling.guided.on:
        complaint = Complaint(
            "guidance_scale", "this bundle's transformer computes without guidance", "1", f"{guided[0].guidance_scale:g}"
        )
        raise InputError(HEADLINE, [complaint], "build it with --guidance-scale")
    return guided


def pictures_of_each(num_images: int, prompts: int, latents: np.ndarray | None) -> int:
    """How many pictures there will be of each prompt.

    Args:
        num_images: the argument; its default gives way to the latents.
        prompts: how many there are.
        latents: given ones, ``[pictures, ...]``.

    Raises:
        InputError: the latents are another number.
    """
    if latents is None:
        return num_images
    each, left_over = divmod(len(latents), prompts)
    complaint = None
    if left_over:
        complaint = Complaint("latents", "are not as many for each prompt", f"a multiple of {prompts}", str(len(latents)))
    elif num_images not in (LEAST["num_images"], each):
        complaint = Complaint("num_images", "disagrees with the latents", str(each), str(num_images))
    if complaint:
        raise InputError(HEADLINE, [complaint], "give as many latents as there shall be pictures, the first prompt's first")
    return each


def picture_size(manifest: Manifest, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels: the bundle's own, unless the caller says otherwise.

    Of a bundle of several sizes the first that has what is said, of one side or of both.

    Raises:
        InputError: the bundle has another size, or none such.
    """
    picture = manifest.picture
    if picture.other_sizes:
        return _one_of(picture.sizes, height, width)
    wanted = {
        "height": picture.height if height is None else height,
        "width": picture.width if width is None else width,
    }
    if not picture.dynamic:
        complaints = [
            Complaint(f"--{name}", "this bundle has a fixed size", f"{getattr(picture, name)} pixels", str(size))
            for name, size in wanted.items()
            if not is_whole(size) or size != getattr(picture, name)
        ]
        other = "a bundle of that size" if manifest.model_format == "coreml" else "a bundle of that size, or with --dynamic"
        remedy = f"leave {' and '.join(c.where for c in complaints)} out, or build {other}"
    else:
        complaints = [
            Complaint(f"--{name}", "wrong size", _sizes_expected(size, picture), str(size))
            for name, size in wanted.items()
            if not is_whole(size) or not 0 < size <= picture.largest or size % picture.multiple_of
        ]
        remedy = "take a size that fits"
    if complaints:
        raise InputError("The picture's size does not fit the bundle.", complaints, remedy)
    return int(wanted["height"]), int(wanted["width"])


def _one_of(sizes: Sequence[tuple[int, int]], height: int | None, width: int | None) -> tuple[int, int]:
    for size in sizes:
        if all(
            wanted is None or (is_whole(wanted) and wanted == side) for wanted, side in zip((height, width), size, strict=True)
        ):
            return size
    given = {"--height": height, "--width": width}
    there = "one of " + ", ".join(f"{columns}x{rows}" for rows, columns in sizes)
    complaint = Complaint(
        " and ".join(name for name, value in given.items() if value is not None),
        "this bundle draws no such size",
        there,
        "x".join("any" if value is None else str(value) for value in (width, height)),
    )
    raise InputError(
        "The picture's size does not fit the bundle.", [complaint], "take one of them, or build a bundle of that size"
    )


def _sizes_expected(size: int, picture: PictureRecord) -> str:
    """What a side of a dynamic size can be, and the sizes nearest to one that it cannot be."""
    step, most = picture.multiple_of, picture.largest // picture.multiple_of * picture.multiple_of
    can_be = f"a multiple of {step} from {step} to {most}"
    if not is_whole(size):
        return can_be
    below, above = size // step * step, -(-size // step) * step
    nearest = dict.fromkeys(min(max(near, step), most) for near in (below, above))
    return f"{can_be}, for example {' or '.join(map(str, nearest))}"
