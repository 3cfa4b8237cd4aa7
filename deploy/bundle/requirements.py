"""The least onnxruntime that runs a bundle's graphs: found by running them, and checked before they are loaded.

``make older-onnxruntime`` draws with each of these versions, and shows that the release before it fails or draws something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from deploy.bundle.manifest import Manifest
from deploy.errors import Complaint, InputError
from exporters.choices import Compute

if TYPE_CHECKING:
    from quantization.schemes import Scheme  # builds have schemes; whoever draws has none

NAME = "onnxruntime"
LEAST = {
    23: "1.23",  # 1.22 stops at opset 22
    21: "1.20",  # 1.19 reads opset 21, but its MultiHeadAttention does not spread one attention bias over all heads
}
LEAST_EIGHT_BIT_BLOCKS = "1.22"  # 1.21 has MatMulNBits for 4 bits only
LEAST_TWO_BIT_BLOCKS = "1.24"  # 1.23 has them for 4 and 8 bits
LEAST_HALF_BLOCKS = "1.23"  # MatMulNBits in fp16: 1.19 to 1.22 make NaN of it on CPUs


def least_onnxruntime(opset: int, compute: Compute, schemes: Iterable[Scheme]) -> str:
    """The version that graphs ask for.

    Args:
        opset: of the graphs.
        compute: what matrices compute in.
        schemes: how they are stored.
    """
    wanted = {LEAST[opset]}
    for scheme in schemes:
        if scheme.block is not None:
            wanted |= {LEAST_EIGHT_BIT_BLOCKS} if scheme.bits > 4 else set()
            wanted |= {LEAST_TWO_BIT_BLOCKS} if scheme.bits < 4 and scheme.kind == "integer" else set()
            wanted |= {LEAST_HALF_BLOCKS} if compute == "fp16" else set()
    return max(wanted, key=numbers)


def check_onnxruntime(manifest: Manifest) -> None:
    """Refuse a bundle that the installed onnxruntime is too old for.

    Raises:
        InputError: it is, with the version to install.
    """
    import onnxruntime

    # Of version 1 manifests every graph was of opset 23.
    least = LEAST[23] if manifest.version == 1 else manifest.requires.get(NAME, "")
    if numbers(onnxruntime.__version__) >= numbers(least):
        return
    complaint = Complaint(NAME, "is too old for this bundle", f"{least} or newer", onnxruntime.__version__)
    oldest = LEAST[min(LEAST)]
    other = f", or build with --opset {min(LEAST)}, from onnxruntime {oldest} on" if numbers(least) > numbers(oldest) else ""
    raise InputError("The bundle cannot be run here.", [complaint], f"pip install '{NAME}>={least}'{other}")


def numbers(version: str) -> tuple[int, ...]:
    """A version's leading numbers, to be compared.

    >>> numbers("1.9") < numbers("1.23.2") < numbers("1.24.0.dev20260101+cpu")
    True
    """
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
