"""Whether a student's files say that it draws without guidance.

A few-step student has its guidance distilled in, most of them; a model that has not draws poor pictures without, and nothing in a
checkpoint's tensors tells the two apart. What tells is what people write: names and cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

CARDS = ("README.md", "readme.md", "MODEL_CARD.md", "model_card.md")
LARGEST_CARD = 1 << 20
MOST_FEW_STEPS = 16
UNGUIDED = (0.0, 1.0)  # diffusers' pipelines guide where the scale is above 1

# Glued to other words ("mediumturbo") these still mean what they say.
_ANYWHERE = r"turbo|(?<!pytorch[- ])lightning|schnell|distil|few[-_ ]?steps?"
# These are parts of other words ("inside", "hyperparameter", "flash attention").
_WORDS = r"flash(?![-_ ]?att)|lcm|tcd|pcm|hyper(?![-_ ]?(?:param|link|network))|tdm|sid|dmd|swd|nitro|senseflow"
_COUNTS = r"one|two|three|four|five|six|eight|single"
_NAMED = re.compile(rf"{_ANYWHERE}|(?<![a-z])(?:{_WORDS})(?![a-z])", re.IGNORECASE)
_STEPS = re.compile(
    rf"(?<![\w.])(\d{{1,4}}|{_COUNTS})(?:\s*/\s*\d+)*[-_ ]?steps?(?![a-z])|(?:num_)?(?:inference_)?steps?\s*[=:]\s*(\d{{1,4}})\b",
    re.IGNORECASE,
)
_SCALE = re.compile(r"guidance[-_ ]scale[`'\"]?\s*[:=]\s*`?(\d+(?:\.\d+)?)", re.IGNORECASE)


def names_few_steps(text: str) -> bool:
    """Whether a text names a way of distilling, or a number of steps that only distilled students draw in.

    >>> [names_few_steps(t) for t in ("sd3.5-large-turbo", "draws in 4 steps", "num_inference_steps=28", "inside the residual")]
    [True, True, False, False]
    """
    if _NAMED.search(text.replace("_", " ")):
        return True
    return any(_is_few(match[1] or match[2]) for match in _STEPS.finditer(text))


def _is_few(count: str) -> bool:
    return not count.isdigit() or 1 <= int(count) <= MOST_FEW_STEPS


def names_of(path: Path) -> list[str]:
    """What a student is called: its folder or file, links followed or not, and the model that it is a snapshot of."""
    names = []
    for place in (path.absolute(), path.resolve()):
        folder = place.parent if place.suffix == ".safetensors" else place
        names += [place.name, folder.name]
        if folder.parent.name == "snapshots":
            names.append(folder.parent.parent.name)
    return list(dict.fromkeys(names))


def card_of(folder: Path) -> str:
    """The student's card, as far as anyone would read it."""
    for name in CARDS:
        try:
            if (folder / name).is_file():
                with (folder / name).open(encoding="utf-8", errors="replace") as stream:
                    return stream.read(LARGEST_CARD)
        except OSError:
            continue
    return ""


def scales_in(card: str) -> tuple[float, ...]:
    """The guidance scales that a card's examples give, each once.

    >>> scales_in("pipe(prompt, num_inference_steps=8, guidance_scale=1.5)")
    (1.5,)
    """
    return tuple(dict.fromkeys(float(number) for number in _SCALE.findall(card)))


def guidance_note(scale: float | None, texts: Iterable[str], cards: Iterable[str] = ()) -> str:
    """What to say of a student that is drawn without guidance; empty where its files settle that it needs none.

    Args:
        scale: ``guidance_scale`` of ``student.json``, if it is given.
        texts: names and scheduler.
        cards: of the student, and of LoRAs that are merged into it.
    """
    if scale is not None:
        return ""
    cards = tuple(cards)
    scales = [one for card in cards for one in scales_in(card)]
    if scales and min(scales) > max(UNGUIDED):
        told = " and ".join(f"{one:g}" for one in dict.fromkeys(scales))
        return (
            f"guidance is off, and the student's card draws with guidance_scale {told}: give --guidance-scale, or say "
            f'{{"guidance_scale": {scales[0]:g}}} in student.json'
        )
    if any(names_few_steps(text) for text in (*texts, *cards)):
        return ""
    return (
        "guidance is off, and nothing in the student's files says that it needs none: neither its name, its card nor its "
        "scheduler names a few-step distillation, and student.json gives no guidance_scale. A model that needs guidance, "
        "base SD3.5 for example, draws poor pictures without: --guidance-scale draws with it. If this one needs none, say so in "
        'student.json: {"guidance_scale": 1.0}'
    )
