"""Equalisation (:mod:`quantization.equalisation`) of products that round their inputs, folded into the layer norm before them.

::

    scale, shift -> LayerNormalization -> MatMul(W), ...      scale / s, shift / s -> LayerNormalization -> MatMul(W s), ...

An AdaLN's scale and shift are computed from the prompt, so that the division is a node: of one vector, where the norm has one for
each token. Scales that are weights are divided likewise, once, when a runtime folds its constants.

Does not fire where the norm has a reader that is no such product, products that the calibration did not see on one input, or a
cast behind it (half precision).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from exporters.onnx.weights import STAMP, LazyWeight
from quantization.calibration import Calibration
from quantization.equalisation import input_factors


def equalise_inputs(graph: ir.Graph, weights: Collection[ir.Value], calibration: Calibration) -> dict[ir.Value, np.ndarray]:
    """Divide the inputs of products where that folds; in place.

    Args:
        graph: its products are MatMul or Gemm.
        weights: the initializers of products that will round their inputs.
        calibration: what is known of their inputs.

    Returns:
        The factors ``[in]`` that these of the weights are to be multiplied by.
    """
    factors_by_weight: dict[ir.Value, np.ndarray] = {}
    for norm in [node for node in graph if node.op_type == "LayerNormalization"]:
        output = norm.outputs[0]
        read = [reader.inputs[1] for reader in output.consumers() if len(reader.inputs) > 1]
        products = [weight for weight in read if weight is not None and weight in weights]
        if not products or len(products) < len(output.uses()) or output.is_graph_output():
            continue
        keys = [
            (tensor.weight.component, tensor.weight.name) for w in products if isinstance(tensor := w.const_value, LazyWeight)
        ]
        if len({calibration.input_number(*key) for key in keys}) > 1:
            continue
        sensitivity = calibration.sensitivity(*keys[0])
        if sensitivity is None or sensitivity.gram is None:
            continue
        factors = input_factors(sensitivity.gram)
        _divide(graph, norm, factors)
        factors_by_weight |= dict.fromkeys(products, factors)
    return factors_by_weight


def _divide(graph: ir.Graph, norm: ir.Node, factors: np.ndarray) -> None:
    """Divide scale and shift of a layer norm."""
    for i, vector in list(enumerate(norm.inputs))[1:]:
        if vector is None:
            continue
        name = f"{norm.outputs[0].name}.equalisation.{i}"
        inverse = ir.Value(name=name, const_value=ir.Tensor(1 / factors, name=name), type=ir.TensorType(ir.DataType.FLOAT))
        inverse.shape = ir.Shape(factors.shape)
        graph.initializers.add(inverse)
        divide = ir.node("Mul", [vector, inverse], metadata_props={STAMP: "QuantizeWeights"})
        divide.outputs[0].type, divide.outputs[0].shape = vector.type, vector.shape
        graph.insert_before(norm, divide)
        norm.replace_input_with(i, divide.outputs[0])
