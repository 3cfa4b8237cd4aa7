"""Pictures that are drawn elsewhere (another process, a device, a browser) so that they can be compared: lines of JSON.

Lossless: final latents and pictures travel in fp32.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from quantization.errors import Complaint, InputError


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture to be drawn: what it shows, and the seed of its noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn.

    Attributes:
        picture: ``[height, width, 3]`` in [0, 1].
        latents: what the VAE decoded, ``[channels, height / 8, width / 8]``; none where the runtime does not give them away.
    """

    picture: np.ndarray
    latents: np.ndarray | None


class _Array(msgspec.Struct):
    shape: tuple[int, ...]
    data: str


class _Line(msgspec.Struct):
    picture: _Array
    latents: _Array | None


def noise(seed: int, shape: Sequence[int], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The noise of a seed, as the runtime draws it.

    Args:
        seed: of the picture.
        shape: of its latents, ``[channels, height / 8, width / 8]``.
        steps: of the sampler.

    Returns:
        Initial latents ``[1, channels, ...]`` and what a re-noising sampler adds, ``[steps, channels, ...]``.
    """
    rng = np.random.default_rng([seed, 0])
    initial = rng.standard_normal(tuple(shape), np.float32)
    return initial[None], np.stack([rng.standard_normal((1, *shape), np.float32)[0] for _ in range(steps)])


def to_line(drawn: Drawn) -> str:
    """A picture as one line of JSON."""
    line = _Line(_pack(drawn.picture), None if drawn.latents is None else _pack(drawn.latents))
    return msgspec.json.encode(line).decode()


def from_line(line: str, where: str) -> Drawn:
    """The picture of a line.

    Raises:
        InputError: the line is none.
    """
    try:
        decoded = msgspec.json.decode(line, type=_Line)
        return Drawn(_unpack(decoded.picture), None if decoded.latents is None else _unpack(decoded.latents))
    except (msgspec.MsgspecError, ValueError, zlib.error) as error:
        raise InputError("A picture did not arrive.", [Complaint(where, str(error))]) from error


def wanted_lines(wanted: Sequence[Wanted]) -> str:
    """Requests as JSON."""
    return msgspec.json.encode(list(wanted)).decode()


def read_wanted(text: str) -> tuple[Wanted, ...]:
    """Requests from JSON.

    Raises:
        InputError: it is something else.
    """
    try:
        return msgspec.json.decode(text, type=tuple[Wanted, ...])
    except msgspec.MsgspecError as error:
        raise InputError("The pictures to be drawn cannot be read.", [Complaint("standard input", str(error))]) from error


def _pack(array: np.ndarray) -> _Array:
    content = zlib.compress(np.ascontiguousarray(array, np.float32).tobytes(), 1)
    return _Array(array.shape, b64encode(content).decode("ascii"))


def _unpack(array: _Array) -> np.ndarray:
    content = zlib.decompress(b64decode(array.data, validate=True))
    return np.frombuffer(content, np.float32).reshape(array.shape)
