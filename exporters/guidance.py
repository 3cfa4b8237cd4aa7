"""Guidance at run time: what a step adds to what the network predicts; light to import.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) asks the network twice, for the prompt and for a negative prompt,
and goes on beyond the prompt's prediction, away from the other: ``v = v_n + w (v - v_n)``, with ``w`` counted from 1, which is
none, as diffusers counts it. An interval of noise levels (Kynkäänniemi et al. 2024, arXiv 2404.07724) leaves it out elsewhere.
Skip-layer guidance asks a third time, with some of the transformer's layers left out, and goes away from that too:
``v + s (v_prompt - v_skipped)``, in the middle of the first steps as diffusers' ``StableDiffusion3Pipeline`` has it.

The names are those of that pipeline's arguments where it has them; ``student.json``, manifests and flags have the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from quantization.errors import Complaint, InputError

__all__ = ["KEYS", "UNGUIDED", "Guidance", "Side", "guidance_complaints", "guided_velocity", "settled_guidance", "told_guidance"]

UNGUIDED = 1.0
LARGEST_SCALE = 100.0
MOST_CHARACTERS = 10_000
Side = Literal["prompt", "negative", "skipped"]
"""Of what the network is asked for its prediction: the prompt, the negative prompt, the prompt with layers left out."""
T = TypeVar("T", bound=Any)


@dataclass(frozen=True)
class Guidance:
    """How a picture is guided.

    Attributes:
        guidance_scale: ``w``; at most 1 is none.
        negative_prompt: what to go away from.
        guidance_interval: the least and the largest noise level (0 to 1, after the shift) of steps that are guided.
        skip_guidance_layers: of the transformer, left out in a third prediction; none without.
        skip_layer_guidance_scale: ``s``.
        skip_layer_guidance_start: the share of the steps after which it begins: step ``i`` of ``n`` (from 0) has it where
            ``start n < i < stop n``.
        skip_layer_guidance_stop: the share at which it ends.
    """

    guidance_scale: float = UNGUIDED
    negative_prompt: str = ""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    skip_guidance_layers: tuple[int, ...] = ()
    skip_layer_guidance_scale: float = 2.8
    skip_layer_guidance_start: float = 0.01
    skip_layer_guidance_stop: float = 0.2

    @property
    def on(self) -> bool:
        """Whether any step can be guided."""
        return self.guidance_scale > UNGUIDED

    def scales(self, sigmas: Sequence[float]) -> tuple[float, ...]:
        """The scale of each step; 1 where it is not guided.

        Args:
            sigmas: noise levels, one more than there are steps.

        >>> Guidance(guidance_scale=4.5, guidance_interval=(0.2, 0.8)).scales((1.0, 0.75, 0.5, 0.1, 0.0))
        (1.0, 4.5, 4.5, 1.0)
        """
        low, high = self.guidance_interval
        return tuple(self.guidance_scale if self.on and low <= sigma <= high else UNGUIDED for sigma in sigmas[:-1])

    def skips(self, sigmas: Sequence[float]) -> tuple[bool, ...]:
        """Whether each step has skip-layer guidance.

        >>> Guidance(guidance_scale=4.5, skip_guidance_layers=(7, 8, 9)).skips([1 - i / 20 for i in range(21)]).index(True)
        1
        """
        steps, skips = len(sigmas) - 1, self.on and bool(self.skip_guidance_layers)
        first, last = steps * self.skip_layer_guidance_start, steps * self.skip_layer_guidance_stop
        return tuple(skips and first < i < last for i in range(steps))

    def sides(self, sigmas: Sequence[float]) -> tuple[Side, ...]:
        """What the network is asked for, by any step.

        >>> Guidance(guidance_scale=2.0).sides((1.0, 0.5, 0.0)), Guidance().sides((1.0, 0.5, 0.0))
        (('prompt', 'negative'), ('prompt',))
        """
        needed: dict[Side, bool] = {
            "prompt": True,
            "negative": any(scale > UNGUIDED for scale in self.scales(sigmas)),
            "skipped": any(self.skips(sigmas)),
        }
        return tuple(side for side, is_needed in needed.items() if is_needed)

    def passes(self, sigmas: Sequence[float]) -> int:
        """How often a picture asks the network.

        >>> Guidance(guidance_scale=2.0).passes((1.0, 0.75, 0.5, 0.0)), Guidance().passes((1.0, 0.5, 0.0))
        (6, 2)
        """
        return sum(self.passes_of_steps(sigmas))

    def passes_of_steps(self, sigmas: Sequence[float]) -> tuple[int, ...]:
        """How often each step asks it."""
        return tuple(1 + (scale > UNGUIDED) + skips for scale, skips in zip(self.scales(sigmas), self.skips(sigmas), strict=True))


KEYS = tuple(field.name for field in fields(Guidance))


def told_guidance(guidance: Guidance) -> str:
    """A guidance in words; empty where it is none.

    >>> told_guidance(Guidance(guidance_scale=4.5, negative_prompt="blurred", guidance_interval=(0.2, 1.0)))
    "4.5 away from 'blurred' from noise level 1 to 0.2"
    """
    if not guidance.on:
        return ""
    low, high = guidance.guidance_interval
    parts = [f"{guidance.guidance_scale:g}"]
    parts += [f"away from {guidance.negative_prompt!r}"] if guidance.negative_prompt else []
    parts += [f"from noise level {high:g} to {low:g}"] if (low, high) != (0.0, 1.0) else []
    if guidance.skip_guidance_layers:
        layers = ", ".join(map(str, guidance.skip_guidance_layers))
        parts.append(f"and {guidance.skip_layer_guidance_scale:g} away from itself without the layers {layers}")
    return " ".join(parts)


def guided_velocity(guidance: Guidance, sigmas: Sequence[float], step: int, predicted: Callable[[Side], T]) -> T:
    """A step's velocity, of arrays or of tensors, in the order in which diffusers computes it.

    Args:
        guidance: how.
        sigmas: noise levels, one more than there are steps.
        step: from 0.
        predicted: asks the network: of the prompt, of the negative prompt, or of the prompt with layers left out.
    """
    scale, own = guidance.scales(sigmas)[step], predicted("prompt")
    velocity = own
    if scale > UNGUIDED:
        negative = predicted("negative")
        velocity = negative + scale * (own - negative)
    if guidance.skips(sigmas)[step]:
        velocity = velocity + (own - predicted("skipped")) * guidance.skip_layer_guidance_scale
    return velocity


def settled_guidance(wanted: Mapping[str, Any], otherwise: Mapping[str, Any], layers: int | None = None) -> Guidance:
    """The guidance that is asked for, as far as it is, and what there is otherwise.

    Args:
        wanted: values by :data:`KEYS`; None and what is not there say nothing.
        otherwise: likewise, for the keys that are not wanted otherwise.
        layers: of the transformer, where that is known.

    Raises:
        InputError: a value is wrong, or something is asked for that has no effect without guidance.
    """
    values = {key: otherwise[key] for key in KEYS if otherwise.get(key) is not None}
    asked = {key: wanted[key] for key in KEYS if wanted.get(key) is not None}
    values |= asked
    complaints = guidance_complaints(values, layers=layers)
    if not complaints:
        values |= {key: tuple(values[key]) for key in ("guidance_interval", "skip_guidance_layers") if key in values}
        guidance = Guidance(**values)
        if guidance.on:
            return guidance
        idle = [key for key in asked if key != "guidance_scale" and values[key]]
        complaints = [
            Complaint(key, "does nothing without guidance", "guidance_scale above 1", f"{guidance.guidance_scale:g}")
            for key in idle
        ]
        if not complaints:
            return guidance
    raise InputError("The picture cannot be guided.", complaints)


def guidance_complaints(values: Mapping[str, Any], prefix: str = "", layers: int | None = None) -> list[Complaint]:
    """What is wrong with values of a guidance; those that are not there are not missed.

    Args:
        values: by :data:`KEYS`; other keys are not looked at.
        prefix: before the names in complaints.
        layers: of the transformer, where that is known.
    """
    expected = {
        "guidance_scale": (lambda v: _is_number(v, 0.0, LARGEST_SCALE), f"a number from 0 to {LARGEST_SCALE:g}; 1 is none"),
        "negative_prompt": (_is_text, f"text that UTF-8 can hold, at most {MOST_CHARACTERS} characters"),
        "guidance_interval": (_is_interval, "two noise levels, from 0 to 1, that do not fall"),
        "skip_guidance_layers": (
            lambda v: _is_layers(v, layers),
            "numbers of layers, each once, from 0" + (f" to {layers - 1}" if layers else ""),
        ),
        "skip_layer_guidance_scale": (
            lambda v: _is_number(v, -LARGEST_SCALE, LARGEST_SCALE),
            f"a number up to {LARGEST_SCALE:g}",
        ),
        "skip_layer_guidance_start": (lambda v: _is_number(v, 0.0, 1.0), "a share of the steps, from 0 to 1"),
        "skip_layer_guidance_stop": (lambda v: _is_number(v, 0.0, 1.0), "a share of the steps, from 0 to 1"),
    }
    return [
        Complaint(f"{prefix}{key}", "wrong", told, repr(values[key]))
        for key, (is_right, told) in expected.items()
        if values.get(key) is not None and not is_right(values[key])
    ]


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS:
        return False
    try:
        return bool(value.encode("utf-8")) or not value
    except UnicodeEncodeError:
        return False


def _is_interval(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(_is_number(level, 0.0, 1.0) for level in value) and value[0] <= value[1]


def _is_layers(value: object, layers: int | None) -> bool:
    most = sys.maxsize if layers is None else layers
    if not isinstance(value, list | tuple) or len(set(map(repr, value))) != len(value):
        return False
    return all(isinstance(layer, Integral) and not isinstance(layer, bool) and 0 <= int(layer) < most for layer in value)
