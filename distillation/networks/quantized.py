"""Quantization in the loop: a network that computes with the weights that a profile will store, and learns as if it did not.

The forward pass takes what the exporters' own codec makes of a weight (:func:`quantization.codecs.codec.roundtrip`), and inputs
rounded as onnxruntime's kernels round them where they do; the gradient goes straight through both (Bengio et al., 1308.3432).
Learning begins at codes that know the layers' inputs (error feedback; :func:`input_grams`), where those are given. What is
published are the weights as they are stored, in fp32, with the profile: whoever draws with them draws what was learned, and a
build encodes them by the same function, which stores the same again: its codes are those of training, bit for bit, as long as it
is given no calibration to choose others by.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from exporters.streamed.module import input_rounding
from quantization.codecs.codec import roundtrip
from quantization.profile import Profile
from quantization.schemes import Scheme
from quantization.sensitivity import Sensitivity

__all__ = ["COMPONENT", "Rounded", "input_grams", "linear_layers", "quantize", "stored_weights"]

COMPONENT = "transformer"
BEHIND = ".parametrizations.weight.original"


class _StraightThrough(torch.autograd.Function):
    """The second tensor, bit for bit, with the gradient of the first: ``w + (stored - w)`` would be off by fp32's rounding."""

    @staticmethod
    def forward(_: Any, original: Tensor, stored: Tensor) -> Tensor:  # noqa: ARG004
        return stored.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class Rounded(nn.Module):
    """What a scheme stores of a weight, with the gradient of the weight.

    Args:
        scheme: of the weight.
        origin: its name, for complaints.
    """

    def __init__(self, scheme: Scheme, origin: str) -> None:
        super().__init__()
        self.scheme, self.origin = scheme, origin
        self._stored: tuple[int, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """What is stored; encoded once for each change of the weight, however often it is read."""
        version = weight._version  # noqa: SLF001  # counts changes in place: an optimizer's steps, a checkpoint's loading
        if self._stored is None or self._stored[0] != version or self._stored[1].device != weight.device:
            array = weight.detach().float().cpu().numpy()
            self._stored = version, torch.from_numpy(roundtrip(array, self.scheme, self.origin)).to(weight)
        through: Tensor = _StraightThrough.apply(weight, self._stored[1])
        return through


def linear_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The layers whose weights a profile may round, by the names of these, in the transformer's order."""
    return {f"{name}.weight": layer for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}


@contextlib.contextmanager
def input_grams(transformer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Gram matrices of the inputs of all linear layers, of what passes while this is open: 4 bytes for each pair of inputs.

    Yields:
        ``[in, in]`` in fp32 by the name of the weight, of layers that something has passed.
    """
    grams: dict[str, Tensor] = {}

    def add(name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
        with torch.autocast(x.device.type, enabled=False):  # which would sum in 8 bits
            gram = x.mT @ x
        grams[name] = grams[name].add_(gram) if name in grams else gram

    hooks = [layer.register_forward_pre_hook(functools.partial(add, name)) for name, layer in linear_layers(transformer).items()]
    try:
        yield grams
    finally:
        for hook in hooks:
            hook.remove()


def quantize(
    transformer: nn.Module, profile: Profile, *, round_inputs: bool = False, grams: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Let a transformer's linear layers compute with what a profile stores of their weights, in place.

    Args:
        transformer: diffusers' ``SD3Transformer2DModel``; its tensors are named as profiles name them.
        profile: how each weight is stored; floating-point schemes leave a layer as it is.
        round_inputs: as onnxruntime's kernels do, where the scheme's do.
        grams: of layers' inputs (:func:`input_grams`): their weights begin as what is stored of them with error feedback, which
            a codec without a calibration stores again, all but the same.

    Returns:
        The names of the weights that are rounded.

    Raises:
        ProfileError: no rule speaks of a weight.
        SchemeError: a weight cannot be stored so.
    """
    names = []
    for name, layer in linear_layers(transformer).items():
        scheme = profile.scheme(COMPONENT, name)
        if scheme.kind == "float":
            continue
        origin = f"{COMPONENT}: {name}"
        if grams is not None and (gram := grams.get(name)) is not None:
            _store_with_feedback(layer.weight, scheme, gram, origin)
        parametrize.register_parametrization(layer, "weight", Rounded(scheme, origin))
        rounding = input_rounding(scheme) if round_inputs else None
        if rounding is not None:
            layer.register_forward_pre_hook(_straight_through(rounding))
        names.append(name)
    return names


@torch.no_grad()
def _store_with_feedback(weight: Tensor, scheme: Scheme, gram: Tensor, origin: str) -> None:
    told = gram.cpu().numpy()
    sensitivity = Sensitivity(np.ones(len(weight)), told.diagonal().copy(), {}, told)
    weight.copy_(torch.from_numpy(roundtrip(weight.float().cpu().numpy(), scheme, origin, sensitivity)))


def _straight_through(rounding: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        x: Tensor = inputs[0]
        with torch.no_grad():
            rounded = rounding(x)
        through: Tensor = _StraightThrough.apply(x, rounded)
        return through

    return hook


def stored_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """The state of a quantized transformer by its plain names, as it computes: of each layer what is stored of its weight.

    A codec that is given it stores the same again. Of a layer where it would not, to the bit, it is the weight that learns.
    """
    state = {name.replace(BEHIND, ".weight"): tensor for name, tensor in transformer.state_dict().items()}
    for name, layer in linear_layers(transformer).items():
        if parametrize.is_parametrized(layer, "weight"):
            rounded: Any = layer.get_submodule("parametrizations.weight.0")
            stored = layer.weight.detach()
            again = torch.from_numpy(roundtrip(stored.float().cpu().numpy(), rounded.scheme, rounded.origin))
            state[name] = stored if torch.equal(again.to(stored), stored) else state[name]
    return state
