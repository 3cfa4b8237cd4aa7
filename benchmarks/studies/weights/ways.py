"""Ways to store a model's weights: without a calibration and with one, in one scheme and in a mixture of least error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.studies.weights.stock import largest_value
from quantization.calibration import Key
from quantization.codecs.codec import roundtrip
from quantization.codecs.integer import decode_integer, encode_integer
from quantization.codecs.lookup import decode_lookup, encode_lookup
from quantization.schemes import Scheme, parse_scheme
from quantization.search import Limits, Option, choose
from quantization.sensitivity import Sensitivity

INTEGERS = ("int4g128", "uint4g128", "int4g64", "uint4g64", "int4g32", "uint4g32", "int8g128", "int8g32", "fp16")
NARROW = ("int2g64", "uint2g64", "int2g32", "uint2g32")
TABLES = ("lut3", "lut4", "lut4g16", "lut6", "lut8", "fp16")
WHOLE_TABLES = ("lut2", "lut3", "lut4", "lut6", "lut8", "fp16")
"""One table for a tensor: all that the Neural Engine computes rightly."""

Make = Callable[[Key, np.ndarray], np.ndarray]
Weights = dict[Key, np.ndarray]


class Ways:
    """Ways to store a model's weights; each gives what the stored weights stand for.

    Args:
        weights: by key, ``[out, in]``.
        sensitivities: of each.
    """

    def __init__(self, weights: Weights, sensitivities: Mapping[Key, Sensitivity]) -> None:
        self.weights, self.sensitivities = weights, sensitivities
        self._calibrated: dict[str, Weights] = {}

    def size(self, scheme: str, scale_bytes: int = 4) -> int:
        """Bytes of all weights."""
        return sum(parse_scheme(scheme).size_bytes(w.shape, scale_bytes) for w in self.weights.values())

    def bytes_of(self, bits: float) -> int:
        """Bytes of all weights at so many bits each."""
        return int(bits * sum(w.size for w in self.weights.values()) / 8)

    def all_of(self, make: Make) -> Weights:
        """What a way leaves of each weight."""
        return {key: make(key, weight) for key, weight in self.weights.items()}

    def free(self, scheme: str) -> Weights:
        """Ours, without a calibration."""
        return self.all_of(lambda key, w: roundtrip(w, parse_scheme(scheme), str(key)))

    def ours(self, scheme: str) -> Weights:
        """Ours, with the calibration."""
        if scheme not in self._calibrated:
            self._calibrated[scheme] = self.all_of(
                lambda key, w: roundtrip(w, parse_scheme(scheme), str(key), self.sensitivities[key])
            )
        return self._calibrated[scheme]

    def weighted(self, scheme: str) -> Weights:
        """Scales or tables that weigh errors by importance, without feedback."""
        return self.all_of(lambda key, w: weighted_by_importance(w, parse_scheme(scheme), self.sensitivities[key]))

    def chosen(self, schemes: Sequence[str], size_bytes: int) -> dict[Key, Option]:
        """The choice among schemes of least estimated error within a size."""
        options = [[self._option(key, scheme) for scheme in schemes] for key in self.weights]
        return dict(zip(self.weights, choose(options, "error", Limits(size_bytes=size_bytes)), strict=True))

    def searched(self, schemes: Sequence[str], size_bytes: int) -> tuple[int, Weights]:
        """What that choice leaves of the weights, after its bytes."""
        options = self.chosen(schemes, size_bytes)
        stored = {key: self.ours(option.scheme.name)[key] for key, option in options.items()}
        return sum(option.size_bytes for option in options.values()), stored

    def _option(self, key: Key, scheme: str) -> Option:
        error = self.sensitivities[key].weight_error(self.weights[key], self.ours(scheme)[key])
        return Option(parse_scheme(scheme), parse_scheme(scheme).size_bytes(self.weights[key].shape), error)


def rounded_to_nearest(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The largest value of a block on its last code; of a table, even steps from the least value to the largest."""
    wide = weight.astype(np.float32)
    if scheme.kind == "integer":
        return largest_value(wide, scheme.bits, scheme.block or weight.shape[1], levels_down=False, scale_type=np.float32)
    step, low = np.ptp(wide) / ((1 << scheme.bits) - 1), wide.min()
    values: np.ndarray = np.rint((wide - low) / step) * step + low
    return values


def weighted_by_importance(weight: np.ndarray, scheme: Scheme, sensitivity: Sensitivity) -> np.ndarray:
    """The weight that a scheme stores when its scales or tables know what is important, and nothing else is known."""
    rows, columns = sensitivity.importance()
    if scheme.kind == "lookup":
        return decode_lookup(encode_lookup(weight, scheme, "weight", rows[:, None] * columns))
    return decode_integer(encode_integer(weight, scheme, "weight", columns))
