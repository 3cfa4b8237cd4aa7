"""What every traced module shares: where its weights come from, and how it mixes precisions.

Precision policy. Linear layers, convolutions and attention run in the type of their weights (``fp16`` graphs: fp16).
The residual streams, normalisations and modulations stay in fp32: the residual stream of a deep MMDiT grows from block
to block, and rounding it to 11 bits after each of its additions is what costs most of an fp16 graph's accuracy; a VAE's may leave
fp16's range altogether. Products that fp16 is too narrow for (:mod:`exporters.ranges`), or that a rule stores as fp32, compute in
fp32 too. In an fp32 graph every cast below is an identity and vanishes from the trace.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.student.weights.weight import Weight


class Linear(nn.Linear):
    """A linear layer that takes any floating-point input and computes in the type of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """A convolution that takes any floating-point input and computes in the type of its weights.

    Attributes:
        begins_stream: its result is a residual stream, which is fp32.
    """

    begins_stream = False

    def forward(self, input: Tensor) -> Tensor:
        """``[batch, in_channels, height, width]`` to ``[batch, out_channels, ...]``."""
        output = self._conv_forward(input.to(self.weight.dtype), self.weight, self.bias)
        return output.to(torch.float32) if self.begins_stream else output


class TokenEmbedding(nn.Embedding):
    """A table that is looked up by token id; tables that are read whole are plain ``nn.Embedding``."""


class Module(nn.Module):
    """A module whose parts are named at run time, because diffusers' names are not identifiers.

    Args:
        parts: submodules by name.

    Attributes:
        recomputed: whether gradients keep this module's inputs alone and compute the rest again
            (:mod:`exporters.streamed.module`).
    """

    recomputed = False

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Parts are known at run time only."""


class RestructuredModule(Module):
    """A module built on the meta device, whose weights are found by name when the graph is written."""

    def weights(self, component: Mapping[str, Weight]) -> dict[str, Weight]:
        """The weight behind each parameter and buffer of this module.

        Args:
            component: the weights of the student's component, by diffusers' names.

        By default a name means the same tensor here and there; modules that derive tensors override this.
        """
        return named(self, component)


def named(module: nn.Module, component: Mapping[str, Weight], prefix: str = "") -> dict[str, Weight]:
    """Each tensor of ``module`` by the same name in the component, under ``prefix``."""
    return {name: component[f"{prefix}.{name}" if prefix else name] for name in module.state_dict()}


def prefixed(prefix: str, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights of a submodule under its name in its parent."""
    return {f"{prefix}.{name}": weight for name, weight in weights.items()}


def constant(values: np.ndarray, origin: str) -> Weight:
    """A weight that is computed at export time rather than read."""
    return Weight(tuple(values.shape), values.dtype, lambda: values, origin)


def as_tensor(weight: Weight) -> Tensor:
    """The weight in fp32, as torch holds it."""
    return torch.from_numpy(weight.load().astype(np.float32))


PRODUCTS = (nn.Linear, nn.Conv2d, nn.Embedding)


def set_precision(module: nn.Module, dtype: torch.dtype, wide: Collection[str] = ()) -> None:
    """Give matrices, convolutions and embeddings ``dtype``; norms and constants stay in fp32 (the policy above).

    Args:
        module: built on the meta device.
        dtype: what matrices compute in.
        wide: names of the parts that compute in fp32 all the same; of a part with an attention, that attention.
    """
    for name, part in module.named_modules():
        if name in wide:
            part.wide_attention = True  # type: ignore[assignment]
        elif isinstance(part, PRODUCTS):
            part.to(dtype)
