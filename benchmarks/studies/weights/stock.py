"""Weights as stock tools would store them: their own code where it can be called, their published formula where it cannot.

Each function takes a weight ``[out, in]`` and gives, in fp32, what the stored one stands for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import numpy as np


def largest_value(weight: np.ndarray, bits: int, block: int, levels_down: bool, scale_type: type) -> np.ndarray:
    """Round to nearest in blocks, the largest value on the end of the range: the textbook, ggml's q4_0 and q8_0."""
    rows = weight.astype(np.float32)
    blocks = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(rows), -1, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    low = -(1 << (bits - 1))
    scale = (largest / low if levels_down else np.abs(largest) / (-low - 1)).astype(scale_type).astype(np.float32)
    codes = np.clip(np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)), low, -low - 1)
    values: np.ndarray = codes * scale
    return values.reshape(len(rows), -1)[:, : rows.shape[1]]


def onnxruntime_blocks(weight: np.ndarray, block: int) -> np.ndarray:
    """4-bit symmetric blocks as onnxruntime's MatMulNBitsQuantizer makes them."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    stock = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=4))
    packed, scales, _ = stock.qbits_block_quant(np.ascontiguousarray(weight.T.astype(np.float32)))  # [in, out]
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32) - 8
    values: np.ndarray = codes * scales.reshape(*packed.shape[:2], 1)
    return values.reshape(len(weight), -1)[:, : weight.shape[1]]


def nncf_weights(weight: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Symmetric integers as OpenVINO's NNCF makes them without data: 8 bits per output channel, 4 bits in blocks.

    The compressed product is given the identity, in fp32 and without rounding its inputs: its outputs are the weights.
    """
    import nncf
    import openvino
    from openvino import opset13 as op

    x = op.parameter([-1, weight.shape[1]], openvino.Type.f32)
    model = openvino.Model([op.matmul(x, op.constant(weight.astype(np.float32)), False, True)], [x])
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        if bits == 8:
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        else:
            mode = nncf.CompressWeightsMode.INT4_SYM
            model = nncf.compress_weights(model, mode=mode, ratio=1.0, group_size=block, all_layers=True)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = openvino.Core().compile_model(model, "CPU", exact)
    values: np.ndarray = compiled(np.eye(weight.shape[1], dtype=np.float32))[0].T.copy()
    return values


def coremltools_tables(weight: np.ndarray, bits: int) -> np.ndarray:
    """Look-up tables as ``coremltools.optimize.coreml.palettize_weights`` makes them (k-means, one table)."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own habit)
    from coremltools.optimize import coreml as cto

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, weight.shape[1]))], opset_version=ct.target.iOS18)  # type: ignore[untyped-decorator]
    def program(x: object) -> object:
        return mb.linear(x=x, weight=weight.astype(np.float32), name="y")

    config = cto.OptimizationConfig(cto.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=0))
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        options = {"compute_precision": ct.precision.FLOAT32, "skip_model_load": True}
        model = ct.convert(program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18, **options)
        model = cto.decompress_weights(cto.palettize_weights(model, config))
    values: np.ndarray = next(o for o in model._mil_program.functions["main"].operations if o.op_type == "linear").weight.val  # noqa: SLF001 (what it stands for is shown nowhere else)
    return values.astype(np.float32)
