"""Whether 8-bit products add up exactly on this processor: inputs and weights at the ends of their codes, in every runtime here.

    python -m benchmarks.studies.saturation [--time]
    qemu-x86_64 -cpu Haswell python -m benchmarks.studies.saturation        (a processor without VNNI, emulated)

x86 processors without VNNI multiply unsigned by signed bytes and add pairs of products in 16 bits, which saturate at 32,767: two
products of 255 and 127 are 64,770. ``signed codes`` are what bundles stored for ``w8a8`` before, and what ``quantize_dynamic``
makes. A sum that is exact comes to over 100 dB here, since all that is rounded is scales in fp32.

``--time`` compares a product of 1102 tokens, 1536 and 6144 channels with its fp32 form: one thread, CPU time, the best of six
rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from exporters.reference.decibels import snr_db

EXACT_DB = 100.0
FORMS = ("signed codes", "unsigned codes", "blocks of 8 bits", "blocks of 4 bits")
TIMED = (1102, 1536, 6144)
Run = Callable[[np.ndarray], np.ndarray]


def product(form: str, codes: np.ndarray, tokens: int) -> bytes:
    """An ONNX model of ``x @ codes`` for integer codes ``[in, out]``, its weights stored in that form; scales are 1."""
    columns, rows = codes.shape
    weights: dict[str, np.ndarray] = {}
    if form == "fp32":
        weights["w"] = codes.astype(np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    elif form.startswith("blocks"):
        bits = int(form.split()[2])
        unsigned = (codes.T + (1 << (bits - 1))).astype(np.uint8).reshape(rows, -1, 32)
        packed = unsigned if bits == 8 else unsigned[..., ::2] | unsigned[..., 1::2] << 4
        weights = {"w": np.ascontiguousarray(packed), "s": np.ones(rows * unsigned.shape[1], np.float32)}
        attributes = {"K": columns, "N": rows, "bits": bits, "block_size": 32, "accuracy_level": 4}
        nodes = [helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)]
    else:
        weights["w"] = codes.astype(np.int8)
        inputs = ["levels", "w", "zero"]
        if form == "unsigned codes":
            weights = {"w": (codes + 128).astype(np.uint8), "middle": np.array(128, np.uint8)}
            inputs.append("middle")
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["levels", "scale", "zero"]),
            helper.make_node("MatMulInteger", inputs, ["sums"]),
            helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "scale"], ["y"]),
        ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [tokens, n]) for name, n in (("x", columns), ("y", rows))]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "product", ports[:1], ports[1:], initializers)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def in_onnxruntime(model: bytes) -> Run:
    """Runs a model in onnxruntime's CPU provider, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"x": x})[0])


def in_openvino(model: bytes) -> Run:
    """Runs a model in OpenVINO, which rounds inputs of blocks in groups."""
    import openvino

    config = {"INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(model), "CPU", config)
    return lambda x: np.array(compiled({"x": x})[compiled.outputs[0]])


def decibels(form: str, tokens: int, sign: int, run: Callable[[bytes], Run]) -> float:
    """A product of the largest inputs and the largest codes of one sign, against the exact one."""
    largest = 7 if "4 bits" in form else 127
    codes, x = np.full((256, 40), sign * largest, np.int32), np.full((tokens, 256), 3.0, np.float32)
    return snr_db(x.astype(np.float64) @ codes, run(product(form, codes, tokens))(x))


def _time() -> None:
    tokens, columns, rows = TIMED
    rng = np.random.default_rng(0)
    codes, x = rng.integers(-127, 128, (columns, rows)), rng.standard_normal((tokens, columns), np.float32)
    forms = ("fp32", "signed codes", "unsigned codes")
    runs = {form: in_onnxruntime(product(form, codes, tokens)) for form in forms}
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(6):
        for form, run in runs.items():
            began = time.process_time()
            run(x)
            best[form] = min(best[form], time.process_time() - began)
    print(f"\n| {tokens} x {columns} x {rows}, CPU time | over fp32 |\n|---|---|")
    for form in forms:
        print(f"| {form} | {best[form] / best['fp32']:.2f} |")


def main() -> None:
    """Print a table of decibels, and of times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="also compare times with fp32's")
    options = parser.parse_args()
    runtimes = {"onnxruntime": in_onnxruntime} | ({"openvino": in_openvino} if find_spec("openvino") else {})
    print("| | " + " | ".join(runtimes) + " |\n|---|" + "---|" * len(runtimes))
    for form in FORMS:
        worst = [min(decibels(form, n, sign, run) for n in (1, 17) for sign in (1, -1)) for run in runtimes.values()]
        print(f"| {form} | " + " | ".join("exact" if db >= EXACT_DB else f"{db:.1f} dB" for db in worst) + " |", flush=True)
    if options.time:
        _time()


if __name__ == "__main__":
    main()
