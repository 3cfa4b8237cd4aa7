"""Each operation that the evaluator knows, in a package of its own, against numpy and torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from exporters.coreml.evaluate import evaluate, open_package
from exporters.coreml.evaluate.operators import OPERATORS
from exporters.coreml.evaluate.ops.elementwise import ELEMENTWISE
from exporters.coreml.evaluate.ops.indexing import INDEXING
from exporters.coreml.evaluate.ops.products import PRODUCTS
from exporters.coreml.evaluate.ops.reductions import REDUCTIONS
from exporters.coreml.evaluate.ops.resizing import RESIZING
from exporters.coreml.evaluate.ops.shapes import SHAPES
from exporters.reference.decibels import snr_db
from tests.helpers.packages import built, mb

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 5)).astype(np.float32)
Y = RNG.standard_normal((2, 3, 5)).astype(np.float32)
POSITIVE = np.abs(X) + 0.1
IMAGE = RNG.standard_normal((2, 4, 5, 7)).astype(np.float32)
CHANNEL = RNG.standard_normal(4).astype(np.float32)
I = np.arange(-4, 5, dtype=np.int32).reshape(3, 3)  # noqa: E741
T = torch.from_numpy
# One operation in fp32: its rounding is some 2^-24 of its result for each of the few sums and functions inside, over 120 dB.
FLOAT_DB = 120


@dataclass(frozen=True)
class Case:
    """One operation: how to build it, with what, and what must come out."""

    build: Callable
    expected: object
    inputs: dict[str, np.ndarray] = field(default_factory=lambda: {"x": X})
    target: str = "iOS17"


def unary(kind: str, expected: np.ndarray, x: np.ndarray = X, **parameters: object) -> Case:
    return Case(lambda x: getattr(mb, kind)(x=x, **parameters), expected, {"x": x})


def binary(kind: str, function: Callable, x: np.ndarray = X, y: np.ndarray = Y) -> Case:
    return Case(lambda x, y: getattr(mb, kind)(x=x, y=y), function(x, y), {"x": x, "y": y})


def conv(
    kernel: tuple[int, ...], groups: int, expected: Callable, x: np.ndarray = IMAGE, out: int = 6, **parameters: object
) -> Case:
    weight = RNG.standard_normal((out, x.shape[1] // groups, *kernel)).astype(np.float32)
    bias = RNG.standard_normal(out).astype(np.float32)
    return Case(
        lambda x: mb.conv(x=x, weight=weight, bias=bias, groups=groups, **parameters),
        expected(T(x), T(weight), T(bias)).numpy(),
        {"x": x},
    )


def deconv(expected: Callable, groups: int = 1, kernel: tuple[int, int] = (3, 4), **parameters: object) -> Case:
    weight = RNG.standard_normal((4, 6 // groups, *kernel)).astype(np.float32)
    bias = RNG.standard_normal(6).astype(np.float32)
    return Case(
        lambda x: mb.conv_transpose(x=x, weight=weight, bias=bias, groups=groups, **parameters),
        expected(T(IMAGE), T(weight), T(bias)).numpy(),
        {"x": IMAGE},
    )


def gathered(dtype: type[np.integer]) -> Case:
    return Case(lambda x: mb.gather(x=x, indices=np.array([2, 0], dtype), axis=1), X[:, [2, 0]])


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0) -> np.ndarray:
    scores = np.einsum("...ld,...sd->...ls", q.astype(np.float64), k) / math.sqrt(q.shape[-1])
    scores = np.where(mask, scores, -np.inf) if np.asarray(mask).dtype == np.bool_ else scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v


def normalized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    wide = x.astype(np.float64)
    return (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + epsilon)


Q, K, V = (RNG.standard_normal((2, 3, n, d)).astype(np.float32) for n, d in ((4, 8), (6, 8), (6, 5)))
QKV = {"q": Q, "k": K, "v": V}
KEEP = np.tril(np.ones((4, 6), bool))
WEIGHT = RNG.standard_normal((7, 5)).astype(np.float32)
TABLE = RNG.standard_normal((6, 4)).astype(np.float32)
IDS = np.array([[0, 5, 2], [3, 3, 1]], np.int32)

CASES: dict[str, Case] = {
    # Arithmetic, with broadcasting and with integers
    "add": binary("add", np.add, X, Y[:, :1]),
    "add, integers": binary("add", np.add, I, I * 3),
    "sub": binary("sub", np.subtract),
    "mul": binary("mul", np.multiply, X, Y[0, 0]),
    "real_div": binary("real_div", np.divide),
    "pow": binary("pow", np.power, POSITIVE, Y),
    "pow, negative base": Case(lambda x: mb.pow(x=x, y=3.0), X.astype(np.float64) ** 3),
    "maximum": binary("maximum", np.maximum),
    "minimum": binary("minimum", np.minimum),
    "mod": binary("mod", np.mod, I, np.full((3, 3), 3, np.int32)),
    "mod, negative divisor": binary("mod", np.mod, X, np.full_like(X, -0.7)),
    "floor_div": binary("floor_div", np.floor_divide, I, np.full((3, 3), 2, np.int32)),
    "floor_div, floating": binary("floor_div", np.floor_divide, X, np.full_like(X, 0.4)),
    # Comparisons and logic
    "equal": binary("equal", np.equal, I, I.T.copy()),
    "not_equal": binary("not_equal", np.not_equal, I, I.T.copy()),
    "greater": binary("greater", np.greater),
    "greater_equal": binary("greater_equal", np.greater_equal, I, I.T.copy()),
    "less": binary("less", np.less),
    "less_equal": binary("less_equal", np.less_equal, I, I.T.copy()),
    "logical_and": binary("logical_and", np.logical_and, I > 0, I.T > -2),
    "logical_or": binary("logical_or", np.logical_or, I > 0, I.T > 2),
    "logical_xor": binary("logical_xor", np.logical_xor, I > 0, I.T > 2),
    "logical_not": unary("logical_not", ~(I > 0), I > 0),
    "select": Case(lambda c, x, y: mb.select(cond=c, a=x, b=y), np.where(Y > 0, X, Y), {"c": Y > 0, "x": X, "y": Y}),
    # Functions
    "abs": unary("abs", np.abs(X)),
    "sign": unary("sign", np.sign(I), I),
    "exp": unary("exp", np.exp(X)),
    "exp2": unary("exp2", np.exp2(X)),
    "log": unary("log", np.log(POSITIVE.astype(np.float64) + 0.5), POSITIVE, epsilon=0.5),
    "sqrt": unary("sqrt", np.sqrt(POSITIVE), POSITIVE),
    "rsqrt": unary("rsqrt", 1 / np.sqrt(POSITIVE.astype(np.float64) + 0.25), POSITIVE, epsilon=0.25),
    "inverse": unary("inverse", 1 / (POSITIVE.astype(np.float64) + 0.25), POSITIVE, epsilon=0.25),
    "square": unary("square", X.astype(np.float64) ** 2),
    "erf": unary("erf", np.vectorize(math.erf)(X)),
    "cos": unary("cos", np.cos(X)),
    "sin": unary("sin", np.sin(X)),
    "floor": unary("floor", np.floor(X)),
    "ceil": unary("ceil", np.ceil(X)),
    "round": unary("round", np.array([0.0, 2, 2, -2]), np.array([0.5, 1.5, 2.5, -1.5], np.float32)),
    "clip": unary("clip", np.clip(X, -0.5, 0.25), alpha=-0.5, beta=0.25),
    "identity": unary("identity", X),
    "relu": unary("relu", np.maximum(X, 0)),
    "leaky_relu": unary("leaky_relu", np.where(X > 0, X, 0.1 * X), alpha=0.1),
    "sigmoid": unary("sigmoid", 1 / (1 + np.exp(-X.astype(np.float64)))),
    "silu": unary("silu", X / (1 + np.exp(-X.astype(np.float64)))),
    "tanh": unary("tanh", np.tanh(X)),
    "gelu, exact": unary("gelu", 0.5 * X * (1 + np.vectorize(math.erf)(X / math.sqrt(2))), mode="EXACT"),
    "gelu, tanh": unary(
        "gelu",
        0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X.astype(np.float64) ** 3))),
        mode="TANH_APPROXIMATION",
    ),
    "gelu, sigmoid": unary("gelu", X / (1 + np.exp(-1.702 * X.astype(np.float64))), mode="SIGMOID_APPROXIMATION"),
    "softmax": unary("softmax", np.exp(X) / np.exp(X).sum(1, keepdims=True), axis=1),
    "cast, to integers": unary("cast", np.array([1, -1, 0, 2]), np.array([1.9, -1.9, 0.5, 2], np.float32), dtype="int32"),
    "cast, to truth": unary("cast", I != 0, I, dtype="bool"),
    "cast, to floating": unary("cast", I.astype(np.float32), I, dtype="fp32"),
    # Products
    "linear": Case(lambda x: mb.linear(x=x, weight=WEIGHT, bias=WEIGHT[:, 0]), X @ WEIGHT.T + WEIGHT[:, 0]),
    "linear, no bias": Case(lambda x: mb.linear(x=x, weight=WEIGHT), X[0, 0] @ WEIGHT.T, {"x": X[0, 0]}),
    "matmul": Case(lambda x, y: mb.matmul(x=x, y=y, transpose_y=True), X @ Y.swapaxes(1, 2), {"x": X, "y": Y}),
    "matmul, batches": Case(lambda x, y: mb.matmul(x=x, y=y, transpose_x=True), X[:1].swapaxes(1, 2) @ Y, {"x": X[:1], "y": Y}),
    "einsum": Case(
        lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        np.einsum("nchw,nwhu->nchu", IMAGE, np.repeat(IMAGE[:, :1].transpose(0, 3, 2, 1), 1, 0)),
        {"x": IMAGE, "y": np.ascontiguousarray(IMAGE[:, :1].transpose(0, 3, 2, 1))},
    ),
    "attention": Case(lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v), attention(Q, K, V), QKV, "iOS18"),
    "attention, what takes part": Case(
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=KEEP),
        attention(Q, K, V, KEEP),
        QKV,
        "iOS18",
    ),
    "attention, added mask": Case(
        lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
        attention(Q, K, V, WEIGHT[None, :1, :1] + np.arange(6)),
        {**QKV, "m": np.float32(WEIGHT[None, :1, :1] + np.arange(6))},
        "iOS18",
    ),
    "conv": conv((3, 3), 1, lambda x, w, b: F.conv2d(x, w, b, padding=1), pad_type="custom", pad=[1, 1, 1, 1]),
    "conv, valid, strides, groups": conv((2, 3), 2, lambda x, w, b: F.conv2d(x, w, b, (2, 1), groups=2), strides=[2, 1]),
    "conv, uneven padding, dilations": conv(
        (2, 3),
        1,
        lambda x, w, b: F.conv2d(F.pad(x, (0, 3, 2, 1)), w, b, dilation=(1, 2)),
        pad_type="custom",
        pad=[2, 1, 0, 3],
        dilations=[1, 2],
    ),
    "conv, same": conv(
        (4, 3), 1, lambda x, w, b: F.conv2d(F.pad(x, (1, 1, 1, 2)), w, b, (1, 2)), pad_type="same", strides=[1, 2]
    ),
    "conv, same_lower": conv((4, 1), 1, lambda x, w, b: F.conv2d(F.pad(x, (0, 0, 2, 1)), w, b), pad_type="same_lower"),
    "conv, one axis": conv((3,), 1, F.conv1d, x=X),
    "conv, three axes": conv((2, 2, 2), 1, F.conv3d, x=IMAGE[:, :, None].repeat(3, 2)),
    "conv_transpose": deconv(F.conv_transpose2d),
    "conv_transpose, strides, groups": deconv(
        lambda x, w, b: F.conv_transpose2d(x, w, b, (2, 3), groups=2), groups=2, strides=[2, 3]
    ),
    "conv_transpose, padding": deconv(
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2)[:, :, 1:-2, : -3 or None],
        pad_type="custom",
        pad=[1, 2, 0, 3],
        strides=[2, 2],
    ),
    "conv_transpose, output_shape": deconv(
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, padding=1, output_padding=1),
        kernel=(3, 3),
        pad_type="custom",
        pad=[1, 1, 1, 1],
        strides=[2, 2],
        output_shape=[2, 6, 10, 14],
    ),
    "conv_transpose, same": deconv(
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, padding=1), kernel=(4, 4), pad_type="same", strides=[2, 2]
    ),
    # Normalisations
    "layer_norm": Case(
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=WEIGHT[0], beta=WEIGHT[1], epsilon=1e-3),
        normalized(X, (2,), 1e-3) * WEIGHT[0] + WEIGHT[1],
    ),
    "layer_norm, inner axis": Case(
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=CHANNEL, epsilon=1e-3),
        normalized(IMAGE, (1,), 1e-3) * CHANNEL[:, None, None],
        {"x": IMAGE},
    ),
    "instance_norm": Case(
        lambda x: mb.instance_norm(x=x, gamma=CHANNEL, beta=CHANNEL, epsilon=1e-2),
        normalized(IMAGE, (2, 3), 1e-2) * CHANNEL[:, None, None] + CHANNEL[:, None, None],
        {"x": IMAGE},
    ),
    "batch_norm": Case(
        lambda x: mb.batch_norm(x=x, mean=CHANNEL, variance=CHANNEL**2, gamma=CHANNEL, beta=-CHANNEL, epsilon=0.5),
        ((IMAGE.swapaxes(1, 3) - CHANNEL) / np.sqrt(CHANNEL.astype(np.float64) ** 2 + 0.5) * CHANNEL - CHANNEL).swapaxes(1, 3),
        {"x": IMAGE},
    ),
    "l2_norm": Case(
        lambda x: mb.l2_norm(x=x, epsilon=0.5),
        IMAGE / np.sqrt((IMAGE.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True) + 0.5),
        {"x": IMAGE},
    ),
    # Reductions
    "reduce_sum": unary("reduce_sum", X.sum((0, 2), dtype=np.float64), axes=[0, -1]),
    "reduce_sum, all": unary("reduce_sum", np.array(I.sum()), I),
    "reduce_mean": unary("reduce_mean", X.mean((1,), dtype=np.float64, keepdims=True), axes=[1], keep_dims=True),
    "reduce_max": unary("reduce_max", X.max((0, 1)), axes=[0, 1]),
    "reduce_min": unary("reduce_min", X.min((2,)), axes=[2]),
    "reduce_prod": unary("reduce_prod", X.astype(np.float64).prod((0, 2)), axes=[0, 2]),
    "reduce_l1_norm": unary("reduce_l1_norm", np.abs(X).sum(2, dtype=np.float64), axes=[2]),
    "reduce_l2_norm": unary("reduce_l2_norm", np.sqrt((X.astype(np.float64) ** 2).sum(1)), axes=[1]),
    "reduce_sum_square": unary("reduce_sum_square", (X.astype(np.float64) ** 2).sum((1, 2)), axes=[1, 2]),
    "reduce_log_sum": unary("reduce_log_sum", np.log(POSITIVE.sum(2, dtype=np.float64)), POSITIVE, axes=[2]),
    "reduce_log_sum_exp": unary("reduce_log_sum_exp", np.log(np.exp(X.astype(np.float64)).sum((0, 1))), axes=[0, 1]),
    "reduce_argmax": unary("reduce_argmax", X.argmax(1), axis=1),
    "reduce_argmax, first of equals": unary(
        "reduce_argmax", np.array([[1], [0]]), np.array([[1, 7, 7], [3, 3, 3]], np.int32), keep_dims=True
    ),
    "reduce_argmin": unary("reduce_argmin", X.argmin(-1), axis=-1),
    "cumsum": unary("cumsum", np.cumsum(X, 1, dtype=np.float64), axis=1),
    "cumsum, exclusive, reverse": unary(
        "cumsum", np.array([9, 7, 4, 0]), np.array([1, 2, 3, 4], np.int32), axis=0, exclusive=True, reverse=True
    ),
    "cumsum, exclusive": unary("cumsum", np.array([0, 1, 3]), np.array([1, 2, 3], np.float32), axis=0, exclusive=True),
    # Shapes
    "reshape": unary("reshape", X.reshape(5, 6), shape=[5, -1]),
    "reshape, zeros from the right": unary("reshape", X.reshape(1, 2, 3, 5), shape=[0, -1, 3, 0]),
    "transpose": unary("transpose", X.transpose(2, 0, 1), perm=[-1, 0, 1]),
    "expand_dims": unary("expand_dims", X[None, :, :, None], axes=[0, 3]),
    "expand_dims, negative": unary("expand_dims", X[..., None], axes=[-1]),
    "squeeze": unary("squeeze", X[:1, 0], X[:1, :1], axes=[0, 2]),  # the last axis has five elements: it stays
    "squeeze, all": unary("squeeze", X[0, 0], X[:1, :1]),
    "reverse": unary("reverse", X[::-1, :, ::-1], axes=[0, 2]),
    "concat": Case(lambda x, y: mb.concat(values=[x, y], axis=1), np.concatenate([X, Y], 1), {"x": X, "y": Y}),
    "concat, interleaved": Case(
        lambda x, y: mb.concat(values=[x, y], axis=0, interleave=True), np.stack([X[0], Y[0], X[1], Y[1]]), {"x": X, "y": Y}
    ),
    "stack": Case(lambda x, y: mb.stack(values=[x, y], axis=-1), np.stack([X, Y], -1), {"x": X, "y": Y}),
    "split": Case(lambda x: mb.split(x=x, split_sizes=[1, 4], axis=-1), [X[..., :1], X[..., 1:]]),
    "split, equal": Case(lambda x: mb.split(x=x, num_splits=3, axis=1), [X[:, :1], X[:, 1:2], X[:, 2:]]),
    "tile": unary("tile", np.tile(X, (1, 2, 3)), reps=[1, 2, 3]),
    "pad": unary("pad", np.pad(X, ((0, 0), (1, 0), (2, 3)), constant_values=7), pad=[1, 0, 2, 3], constant_val=7.0),
    "pad, reflect": unary("pad", np.pad(X, ((0, 0), (2, 1), (0, 4)), "reflect"), pad=[0, 0, 2, 1, 0, 4], mode="reflect"),
    "pad, replicate": unary("pad", np.pad(X, ((0, 0), (0, 0), (3, 1)), "edge"), pad=[3, 1], mode="replicate"),
    "fill": Case(lambda x: mb.fill(shape=mb.shape(x=x), value=3.0), np.full((2, 3, 5), 3.0)),
    "fill_like": Case(lambda x: mb.fill_like(ref_tensor=x, value=2), np.full((2, 3, 5), 2, np.int32)),
    "shape": unary("shape", np.array([2, 3, 5])),
    "range_1d": Case(
        lambda x: mb.range_1d(start=mb.squeeze(x=x), end=9, step=2), np.array([4, 6, 8]), {"x": np.array([4], np.int32)}
    ),
    "band_part": unary("band_part", np.triu(np.tril(I, 1), 0), I, lower=0, upper=1),
    "band_part, lower half": unary("band_part", np.tril(I), I, lower=-1, upper=0),
    "one_hot": Case(
        lambda x: mb.one_hot(indices=x, one_hot_vector_size=6, axis=1, on_value=2.0, off_value=-1.0),
        np.where(np.arange(6)[None, :, None] == IDS[:, None, :], 2.0, -1.0),
        {"x": IDS},
    ),
    # Slices and gathers
    "slice_by_index": unary("slice_by_index", X[:, 1:, ::2], begin=[0, 1, 0], end=[2, 3, 5], stride=[1, 1, 2]),
    "slice_by_index, masks": unary(
        "slice_by_index",
        X[1:, :2, -3:-1],
        begin=[1, 9, -3],
        end=[9, 2, -1],
        begin_mask=[False, True, False],
        end_mask=[True, False, False],
    ),
    "slice_by_index, squeezed": unary(
        "slice_by_index", X[-1, :, 2], begin=[-1, 0, 2], end=[0, 3, 0], squeeze_mask=[True, False, True]
    ),
    "slice_by_index, backwards": unary(
        "slice_by_index",
        X[:, :, ::-2],
        begin=[0, 0, 0],
        end=[2, 3, 0],
        stride=[1, 1, -2],
        begin_mask=[False, False, True],
        end_mask=[False, False, True],
    ),
    "slice_by_size": unary("slice_by_size", X[:, 1:3, 2:], begin=[0, 1, 2], size=[2, 2, -1]),
    "slice_update": Case(
        lambda x: mb.slice_update(x=x, update=-Y[:, :1, ::2], begin=[0, 1, 0], end=[2, 2, 5], stride=[1, 1, 2]),
        np.where((np.arange(3) == 1)[:, None] & (np.arange(5) % 2 == 0), np.repeat(-Y[:, :1], 3, 1), X),
        target="iOS18",
    ),
    "gather": Case(lambda x: mb.gather(x=TABLE, indices=x, axis=0), TABLE[IDS], {"x": IDS}),
    **{
        # Each type is written into a program in a way of its own.
        f"gather, {dtype.__name__}": gathered(dtype)
        for dtype in (np.int8, np.uint8, np.int16, np.uint16)
    },
    "gather, validated": Case(
        lambda x: mb.gather(x=TABLE, indices=x, axis=1, validate_indices=True), TABLE[:, IDS % 4], {"x": IDS % 4}
    ),
    "gather, inner axis": Case(lambda x: mb.gather(x=x, indices=[3, 0], axis=-1), X[:, :, [3, 0]]),
    "gather, iOS 16 counts from the end": Case(
        lambda x: mb.gather(x=TABLE, indices=x, axis=0), TABLE[[-1, 2]], {"x": np.array([-1, 2], np.int32)}, "iOS16"
    ),
    "gather, batches": Case(
        lambda x: mb.gather(x=x, indices=np.array([[0, 4], [2, 2]], np.int32), axis=2, batch_dims=1),
        np.stack([X[0][:, [0, 4]], X[1][:, [2, 2]]]),
    ),
    "gather_along_axis": Case(
        lambda x: mb.gather_along_axis(x=x, indices=I[:, :2] % 3, axis=1),
        np.take_along_axis(I, I[:, :2] % 3, 1),
        {"x": I},
    ),
    "gather_nd": Case(lambda x: mb.gather_nd(x=x, indices=np.array([[1, 2], [0, 0]], np.int32)), X[[1, 0], [2, 0]]),
    "gather_nd, batches": Case(
        lambda x: mb.gather_nd(x=x, indices=np.array([[[1], [2]], [[0], [0]]], np.int32), batch_dims=1),
        np.stack([X[0][[1, 2]], X[1][[0, 0]]]),
    ),
    # Pictures
    "pixel_shuffle": unary("pixel_shuffle", F.pixel_shuffle(T(IMAGE), 2).numpy(), IMAGE, upscale_factor=2),
    "pixel_unshuffle": unary(
        "pixel_unshuffle",
        F.pixel_unshuffle(T(IMAGE[:, :, :4, :6]), 2).numpy(),
        np.ascontiguousarray(IMAGE[:, :, :4, :6]),
        downscale_factor=np.uint32(2),
    ),
    "upsample_nearest_neighbor": unary(
        "upsample_nearest_neighbor", IMAGE.repeat(2, 2).repeat(3, 3), IMAGE, scale_factor_height=2, scale_factor_width=3
    ),
    "upsample_nearest_neighbor, fraction": unary(
        "upsample_nearest_neighbor", IMAGE[:, :, [0, 0, 1, 2, 2, 3, 4]], IMAGE, scale_factor_height=1.5, scale_factor_width=1.0
    ),
    "resize_nearest_neighbor": unary(
        "resize_nearest_neighbor", F.interpolate(T(IMAGE), (8, 3)).numpy(), IMAGE, target_size_height=8, target_size_width=3
    ),
    "upsample_bilinear": unary(
        "upsample_bilinear",
        F.interpolate(T(IMAGE), (10, 21), mode="bilinear", align_corners=True).numpy(),
        IMAGE,
        scale_factor_height=2,
        scale_factor_width=3,
        align_corners=True,
    ),
    "upsample_bilinear, centres": unary(
        "upsample_bilinear",
        F.interpolate(T(IMAGE), (10, 21), mode="bilinear").numpy(),
        IMAGE,
        scale_factor_height=2,
        scale_factor_width=3,
        align_corners=False,
    ),
    "upsample_bilinear, corners": unary(  # the definition's own example: positions i * 2 / 5
        "upsample_bilinear",
        np.array([[[0, 0.4, 0.8, 1, 1]]]),
        np.array([[[0, 1]]], np.float32),
        scale_factor_height=1.0,
        scale_factor_width=2.5,
        align_corners=False,
        half_pixel_centers=False,
    ),
}


def kind_of(name: str) -> str:
    kind = name.partition(",")[0]
    return "scaled_dot_product_attention" if kind == "attention" else kind


@pytest.mark.parametrize("name", CASES)
def test_operation(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    kind = kind_of(name)
    program = open_package(built(tmp_path / "m.mlpackage", case.build, case.inputs, case.target))
    assert kind in {operation.kind for operation in program.operations}
    outputs = evaluate(program, case.inputs, "fp32")
    expected = case.expected if isinstance(case.expected, list) else [case.expected]
    for port, reference in zip(program.outputs, expected, strict=True):
        got = outputs[port.name]
        assert got.dtype == port.dtype.array
        assert got.shape == reference.shape
        if port.dtype.kind == "float":
            assert snr_db(reference, got) >= FLOAT_DB
        else:
            assert np.array_equal(got, reference)


def test_every_operation_has_a_case() -> None:
    assert {kind_of(name) for name in CASES} == OPERATORS.keys()


def test_no_operation_stands_in_two_tables() -> None:
    tables = (ELEMENTWISE, INDEXING, PRODUCTS, REDUCTIONS, RESIZING, SHAPES)
    assert sum(map(len, tables)) == len(OPERATORS)
