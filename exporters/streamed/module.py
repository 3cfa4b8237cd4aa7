"""A restructured module run by torch, its weights read when a product needs them and dropped after it.

This is how a student of any size is measured and differentiated in little memory: of its weights, one at a time is there; of
its activations, the inputs of its blocks (the rest is computed again on the way back: Chen et al. 2016, arXiv 1604.06174).

Products (linear layers, convolutions, embeddings) can be told what to use in place of a weight, how to round their input,
and whom to tell of the gradients that pass by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.utils.checkpoint import checkpoint

from exporters.layouts.spec import GraphSpec
from exporters.restructure.base import TokenEmbedding, as_tensor, set_precision
from exporters.student.weights.weight import Weight
from quantization.schemes import Scheme

CACHE_BYTES = 1 << 29
"""A module whose weights are fewer keeps them in memory: a small student is then as fast as any torch module."""


class Observer(Protocol):
    """Told of each product on the way back."""

    def __call__(self, product: Product, x: Tensor, weight_gradient: Tensor, x_gradient: Tensor) -> None:
        """One product's input, the gradient of its weight from this pass alone, and that of its input."""


class Watch(Protocol):
    """Told of the values that pass by."""

    def __call__(self, part: str, value: Tensor) -> None:
        """A part of the module takes or makes a value."""


@dataclass(frozen=True)
class Substitute:
    """What a product computes with in place of its own weight.

    Attributes:
        weight: reads it, fp32 in the weight's own shape.
        round_input: what happens to the input first.
    """

    weight: Callable[[], np.ndarray]
    round_input: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Streaming:
    """How products get their weights.

    Attributes:
        substitutes: in place of student tensors, by (component, name).
        observer: told of gradients; they are computed only if there is one.
        compute: what products compute in, as a graph would: fp16 rounds weights, inputs and results of each.
        wide: parts that compute in fp32 all the same (:func:`exporters.restructure.base.set_precision`).
        exact: weights that are stored in fp32, by (component, name), and so are not rounded.
        watch: told, by part, of what its product takes and makes; then no product rounds.
    """

    substitutes: Mapping[tuple[str, str], Substitute] = field(default_factory=dict)
    observer: Observer | None = None
    compute: torch.dtype = torch.float32
    wide: Collection[str] = ()
    exact: Collection[tuple[str, str]] = ()
    watch: Watch | None = None


def input_rounding(scheme: Scheme, factors: np.ndarray | None = None) -> Callable[[Tensor], Tensor] | None:
    """What products of a scheme do to their inputs, as onnxruntime's kernels do it; none where they do nothing.

    ``w8a8``: DynamicQuantizeLinear, unsigned, one range for the tensor (here for each picture of a batch: a bundle draws one at a
    time). Blocks: MatMulNBits at accuracy level 4, signed, one range for each block.

    Args:
        scheme: of the weight.
        factors: what the inputs are divided by before (:mod:`quantization.equalisation`), and multiplied by after.
    """
    if not scheme.rounds_inputs:
        return None
    rounding = _round_tensor if scheme.block is None else functools.partial(_round_blocks, block=scheme.block)
    if factors is None:
        return rounding
    divisors = torch.from_numpy(factors)
    return lambda x: rounding(x / divisors) * divisors


def _round_tensor(x: Tensor) -> Tensor:
    if x.ndim == 4:  # convolutions have no such kernel; their weights alone are stored in 8 bits
        return x
    axes = tuple(range(1 if x.ndim > 2 else 0, x.ndim))
    low, high = x.amin(dim=axes, keepdim=True).clamp(max=0), x.amax(dim=axes, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-low / step).round()
    return (((x / step).round() + zero).clamp(0, 255) - zero) * step


def _round_blocks(x: Tensor, block: int) -> Tensor:
    if x.ndim == 4:
        return x
    blocks = F.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    step = (blocks.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    rounded: Tensor = (blocks / step).round() * step
    return rounded.flatten(-2)[..., : x.shape[-1]]


class Product:
    """One layer with a weight matrix: how to read it, and how to run.

    Attributes:
        layer: the module that it stands for.
        weight: the student's tensor.
        name: the layer's name in its graph's module.
    """

    def __init__(
        self, layer: nn.Linear | nn.Conv2d | nn.Embedding, weight: Weight, streaming: Streaming, cached: bool, name: str
    ) -> None:
        self.layer, self.weight, self.streaming, self.name = layer, weight, streaming, name
        self._type = layer.weight.dtype
        exact = (weight.component, weight.name) in streaming.exact
        self._rounds = streaming.compute != torch.float32 and streaming.watch is None and not exact
        self._substitute = streaming.substitutes.get((weight.component, weight.name))
        self._cache: Tensor | None = None
        self._cached = cached

    def read(self) -> Tensor:
        """The weight, in fp32."""
        if self._cache is not None:
            return self._cache
        tensor = as_tensor(self.weight) if self._substitute is None else torch.from_numpy(self._substitute.weight())
        if self._rounds:
            tensor = tensor.to(self.streaming.compute).to(torch.float32)  # also of wide products: that is how it is stored
        if self._cached:
            self._cache = tensor
        return tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Run the layer."""
        if self._substitute is not None and self._substitute.round_input is not None:
            x = self._substitute.round_input(x)
        if self.streaming.compute != torch.float32:
            return self._run_rounded(x)
        if self.streaming.observer is None or not torch.is_grad_enabled():
            return self.run(x)
        if isinstance(self.layer, nn.Embedding):
            # Token ids have no gradient: a zero that has one makes torch call back.
            zero = torch.zeros((), requires_grad=True)
            return _Streamed.apply(zero, self, x)  # type: ignore[no-any-return, no-untyped-call]
        return _Streamed.apply(x, self, None)  # type: ignore[no-any-return, no-untyped-call]

    def _run_rounded(self, x: Tensor) -> Tensor:
        """The layer as a graph computes it: what it takes and makes is of its own type, sums are fp32."""
        watch = self.streaming.watch
        if watch is not None:
            if x.is_floating_point():
                watch(self.name, x)
            output = self.run(x.to(torch.float32) if x.is_floating_point() else x)
            watch(self.name, output)
            return output
        output = self.run(x.to(self._type).to(torch.float32) if x.is_floating_point() else x).to(self._type)
        return output.to(torch.float32) if getattr(self.layer, "begins_stream", False) else output

    def run(self, x: Tensor) -> Tensor:
        """The layer's output, in fp32."""
        layer = self.layer
        bias = None if isinstance(layer, nn.Embedding) or layer.bias is None else layer.bias.to(torch.float32)
        if isinstance(layer, nn.Embedding):
            return F.embedding(x, self.read())
        if isinstance(layer, nn.Linear):
            return F.linear(x, self.read(), bias)
        return F.conv2d(x, self.read(), bias, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]

    def gradients(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the weight and of the input, for a gradient of the output."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            flat, wide = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
            return flat.T @ wide, gradient @ self.read()
        assert isinstance(layer, nn.Conv2d)
        where: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        weight = self.read()
        return conv2d_weight(x, weight.shape, gradient, *where), conv2d_input(x.shape, weight, gradient, *where)  # type: ignore[arg-type]


class _Streamed(torch.autograd.Function):
    """A product whose weight is read on the way there and again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: Product, ids: Tensor | None) -> Tensor:
        ctx.product = product
        ctx.save_for_backward(x if ids is None else ids)
        return product.run(x if ids is None else ids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        (x,), product = ctx.saved_tensors, ctx.product
        observer = product.streaming.observer
        assert observer is not None
        if isinstance(product.layer, nn.Embedding):
            ids, inverse = x.unique(return_inverse=True)
            rows = torch.zeros(len(ids), gradient.shape[-1]).index_add_(0, inverse.reshape(-1), gradient.flatten(0, -2))
            observer(product, x, rows, torch.zeros(()))
            return torch.zeros(()), None, None
        weight_gradient, x_gradient = product.gradients(x, gradient)
        observer(product, x, weight_gradient, x_gradient)
        return x_gradient, None, None


def stream(spec: GraphSpec, streaming: Streaming | None = None) -> nn.Module:
    """The module of a graph, ready to run, its matrices streamed: in fp32, or as a graph of another type computes.

    Args:
        spec: a graph of fixed size.
        streaming: how products get their weights; the student's own by default.
    """
    streaming = streaming or Streaming()
    with torch.device("meta"):
        model = spec.module()
    assert isinstance(model, nn.Module)
    set_precision(model, streaming.compute, streaming.wide)
    weights = spec.weights(model)
    cached = 4 * sum(weight.elements for weight in weights.values()) <= CACHE_BYTES
    for prefix, module in model.named_modules():
        streams = isinstance(module, nn.Linear | nn.Conv2d | TokenEmbedding)
        for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
            weight = weights[f"{prefix}.{name}" if prefix else name]
            if not (streams and name == "weight" and weight.name):
                _materialise(module, name, weight)
        if streams and module.weight.is_meta:
            module.forward = Product(module, weights[f"{prefix}.weight"], streaming, cached, prefix)  # type: ignore[assignment]
        if streaming.watch is not None and not streams:
            module.watch_attention = functools.partial(_watch_attention, streaming.watch, prefix)
        if getattr(module, "recomputed", False):
            module.forward = _recomputing(module.forward)
    return model.eval().requires_grad_(False)


def _watch_attention(watch: Watch, part: str, query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> None:
    """What an attention takes, and a bound of its scores: no product is larger than that of the lengths (Cauchy and Schwarz)."""
    for tensor in (query, key, value):
        watch(part, tensor)
    lengths = [tensor.unflatten(-1, (heads, -1)).float().norm(dim=-1).amax(dim=1) for tensor in (query, key)]  # [batch, heads]
    watch(part, scale * lengths[0] * lengths[1])


def _materialise(module: nn.Module, name: str, weight: Weight) -> None:
    values, given = weight.load(), getattr(module, name).dtype
    tensor = torch.from_numpy(
        values.astype(np.float32) if values.dtype.kind == "f" or values.dtype.name == "bfloat16" else values
    )
    if given.is_floating_point:
        tensor = tensor.to(given)
    if name in dict(module.named_buffers(recurse=False)):
        setattr(module, name, nn.Buffer(tensor))
    else:
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
