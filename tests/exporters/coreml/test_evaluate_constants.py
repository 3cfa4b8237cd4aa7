"""Compressed weights against coremltools' own decompression, bit for bit, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.coreml.evaluate import evaluate, open_package
from exporters.coreml.evaluate.blob import elements, unpack
from exporters.coreml.evaluate.constants import DECODERS, Constants
from exporters.coreml.evaluate.dtypes import BY_NAME
from exporters.coreml.evaluate.program import Constant, Operation, Port, Program
from exporters.coreml.evaluate.proto import quiet_import
from exporters.errors import ExportError
from tests.helpers.packages import built, built_model, conversion, mb, save, types

with quiet_import():
    import coremltools.optimize as cto

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((48, 32)).astype(np.float32)
KERNEL = RNG.standard_normal((16, 6, 3, 3)).astype(np.float32)
X = RNG.standard_normal((1, 6, 7, 5)).astype(np.float32)


def network(x: Any) -> Any:
    """A convolution and a linear layer: weights of four axes and of two."""
    hidden = mb.conv(x=x, weight=KERNEL, pad_type="same")
    return mb.linear(
        x=mb.reshape(x=mb.slice_by_size(x=hidden, begin=[0, 0, 0, 0], size=[1, 16, 2, 1]), shape=[1, 32]), weight=WEIGHT
    )


def weights(program: Program) -> list[np.ndarray]:
    constants = Constants(program.operations)
    return [constants.read(str(op.arguments["weight"][0])) for op in program.operations if op.kind in {"conv", "linear"}]


def palettize(model: Any, **options: Any) -> Any:
    config = cto.coreml.OpPalettizerConfig(weight_threshold=1, **options)
    return cto.coreml.palettize_weights(model, cto.coreml.OptimizationConfig(global_config=config))


def quantize(model: Any, **options: Any) -> Any:
    config = cto.coreml.OpLinearQuantizerConfig(weight_threshold=1, **options)
    return cto.coreml.linear_quantize_weights(model, cto.coreml.OptimizationConfig(global_config=config))


def prune(model: Any, joint: bool = False) -> Any:
    config = cto.coreml.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=1)
    return cto.coreml.prune_weights(model, cto.coreml.OptimizationConfig(global_config=config), joint_compression=joint)


def sparse_table(model: Any) -> Any:
    config = cto.coreml.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=1)
    return cto.coreml.palettize_weights(prune(model), cto.coreml.OptimizationConfig(global_config=config), joint_compression=True)


def sparse_integers(model: Any) -> Any:
    config = cto.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=1)
    return cto.coreml.linear_quantize_weights(
        prune(model), cto.coreml.OptimizationConfig(global_config=config), joint_compression=True
    )


def integer_table(model: Any) -> Any:
    config = cto.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", granularity="per_tensor", weight_threshold=1)
    return cto.coreml.linear_quantize_weights(
        palettize(model, mode="uniform", nbits=4), cto.coreml.OptimizationConfig(global_config=config), joint_compression=True
    )


GROUPS = {"granularity": "per_grouped_channel", "group_size": 16, "channel_axis": 0}
# How to compress, for which iOS, and the operations that must come of it.
SCHEMES = {
    **{
        f"{bits}-bit tables, iOS 16": (lambda m, bits=bits: palettize(m, mode="uniform", nbits=bits), "iOS16", {"lut_to_dense"})
        for bits in (1, 2, 4, 6, 8)
    },
    **{
        f"{bits}-bit tables": (lambda m, bits=bits: palettize(m, mode="uniform", nbits=bits), "iOS18", {"lut_to_dense"})
        for bits in (1, 2, 3, 4, 6, 8)
    },
    **{
        f"{bits}-bit tables, groups": (
            lambda m, bits=bits: palettize(m, mode="uniform", nbits=bits, **GROUPS),
            "iOS18",
            {"lut_to_dense"},
        )
        for bits in (1, 2, 3, 4, 6, 8)
    },
    "tables of integers": (integer_table, "iOS18", {"lut_to_dense", "blockwise_shift_scale"}),
    "tables with channel scales": (
        lambda m: palettize(m, mode="uniform", nbits=4, enable_per_channel_scale=True),
        "iOS18",
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
    "int8, iOS 16": (lambda m: quantize(m, mode="linear_symmetric", dtype="int8"), "iOS16", {"affine_dequantize"}),
    "uint8 with zero points, iOS 16": (lambda m: quantize(m, mode="linear", dtype="uint8"), "iOS16", {"affine_dequantize"}),
    "int8": (lambda m: quantize(m, mode="linear_symmetric", dtype="int8"), "iOS18", {"blockwise_shift_scale"}),
    "int8 with offsets": (lambda m: quantize(m, mode="linear", dtype="int8"), "iOS18", {"blockwise_shift_scale"}),
    "int4 in blocks": (
        lambda m: quantize(m, mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=2),
        "iOS18",
        {"blockwise_shift_scale"},
    ),
    "uint4 in blocks with offsets": (
        lambda m: quantize(m, mode="linear", dtype="uint4", granularity="per_block", block_size=2),
        "iOS18",
        {"blockwise_shift_scale"},
    ),
    "sparse, iOS 16": (prune, "iOS16", {"sparse_to_dense"}),
    "sparse": (prune, "iOS18", {"sparse_to_dense"}),
    "sparse tables": (sparse_table, "iOS18", {"lut_to_sparse", "sparse_to_dense"}),
    "sparse integers": (sparse_integers, "iOS18", {"sparse_blockwise_shift_scale", "sparse_to_dense"}),
}


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_decompression_is_coremltools(scheme: str, precision: str, tmp_path: Path) -> None:
    compress, target, kinds = SCHEMES[scheme]
    with conversion():
        model = compress(built_model(network, {"x": X}, target, precision))
        compressed = open_package(save(model, tmp_path / "compressed.mlpackage"))
        plain = open_package(save(cto.coreml.decompress_weights(model), tmp_path / "plain.mlpackage"))
        del model
    assert {f"constexpr_{kind}" for kind in kinds} == {
        op.kind for op in compressed.operations if op.kind.startswith("constexpr_")
    }
    assert not any(op.kind.startswith("constexpr_") for op in plain.operations)
    for got, expected in zip(weights(compressed), weights(plain), strict=True):
        assert got.dtype == expected.dtype == (np.float16 if precision == "fp16" else np.float32)
        assert np.array_equal(got.view(np.uint8), expected.view(np.uint8))
        assert len(np.unique(got)) > 1
    got, expected = (next(iter(evaluate(program, {"x": X}, precision).values())) for program in (compressed, plain))
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_tables_of_vectors(axis: int, tmp_path: Path) -> None:
    """Made by hand, two tables of four pairs: coremltools needs scikit-learn to find such tables."""
    indices = RNG.integers(0, 4, (8, 6)).astype(types.np_uint2_dtype)
    lut = RNG.standard_normal((2, 1, 4, 2)).astype(np.float16)
    x = RNG.standard_normal((3, 12 if axis else 6)).astype(np.float16)

    def build(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=lut, vector_axis=np.int32(axis)))

    with conversion():
        model = built_model(build, {"x": x}, "iOS18")
        compressed = open_package(save(model, tmp_path / "compressed.mlpackage"))
        plain = open_package(save(cto.coreml.decompress_weights(model), tmp_path / "plain.mlpackage"))
        del model
    got, expected = weights(compressed)[0], weights(plain)[0]
    assert got.shape == ((8, 12) if axis else (16, 6))
    assert np.array_equal(got, expected)
    row = lut[1, 0, int(indices[5, 2])]  # the second table serves rows 4 to 7
    assert np.array_equal(got[5, 4:6] if axis else got[10:12, 2], row)


@pytest.mark.parametrize("name", ["uint1", "uint2", "uint3", "uint4", "uint6"])
def test_small_packed_tensors_stand_in_the_program(name: str, tmp_path: Path) -> None:
    """Of fewer than ten elements coremltools puts nothing into the weight file."""
    entries = 1 << BY_NAME[name].bits
    indices, lut = np.arange(6).reshape(3, 2) % entries, RNG.standard_normal((1, 1, entries, 1)).astype(np.float16)
    packed = indices.astype(getattr(types, f"np_{name}_dtype"))
    x = np.ones((1, 2), np.float16)

    def build(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=packed, lut=lut))

    program = open_package(built(tmp_path / "m.mlpackage", build, {"x": x}, "iOS18"))
    assert np.array_equal(weights(program)[0], lut.ravel()[indices])


def test_every_decompression_has_a_case() -> None:
    tested = {f"constexpr_{kind}" for _, _, kinds in SCHEMES.values() for kind in kinds}
    assert tested | {"const", "constexpr_cast"} == DECODERS.keys()


def test_cast_by_hand() -> None:
    half = np.array([1.5, -65504], np.float16)
    assert DECODERS["constexpr_cast"](half, np.array("fp32", object)).tolist() == [1.5, -65504]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [1, 7, 8, 50])
def test_packing(bits: int, count: int) -> None:
    """Element i is bits ``i * bits`` to ``(i + 1) * bits`` of the bytes as one little-endian number."""
    codes = RNG.integers(0, 1 << bits, count)
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    stored = np.frombuffer(number.to_bytes(-(-bits * count // 8), "little"), np.uint8)
    assert unpack(stored, bits, count).tolist() == codes.tolist()


def test_signed_elements_by_hand() -> None:
    # 0x8 is -8, 0xF is -1, 0x7 is 7; the low half of a byte comes first.
    assert elements(np.array([0xF8, 0x07], np.uint8), BY_NAME["int4"], (3,)).tolist() == [-8, -1, 7]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("lut_to_dense", {"indices": np.zeros(4, np.uint8), "lut": np.zeros(3), "shape": np.array([4])}, "not one of 2, 4, 16"),
        ("lut_to_dense", {"indices": np.zeros((5, 2), np.uint8), "lut": np.zeros((2, 1, 4, 1))}, "does not divide into"),
        ("lut_to_dense", {"indices": np.full((2, 2), 4, np.uint8), "lut": np.zeros((1, 1, 4, 1))}, "index 4 is out of its table"),
        ("lut_to_dense", {"indices": np.zeros((2, 2), np.uint8), "lut": np.zeros((1, 1, 4, 2))}, "need a vector_axis"),
        ("blockwise_shift_scale", {"data": np.zeros((4, 6)), "scale": np.zeros((4, 4))}, "does not divide into"),
        ("sparse_to_dense", {"nonzero_data": np.zeros(2), "mask": np.ones(3, np.uint8)}, "2 input values to the 3 output"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit(kind: str, arguments: dict[str, np.ndarray], message: str) -> None:
    """A constant of parts that do not fit is named, whatever numpy makes of them."""
    kind = f"constexpr_{kind}"
    bound = {name: (Constant(BY_NAME["fp32"], array.shape, lambda array=array: array),) for name, array in arguments.items()}
    operation = Operation(kind, "weight", bound, (Port("weight", BY_NAME["fp32"], (4,)),))
    with pytest.raises(ExportError, match=rf"{kind} 'weight': .*{message}"):
        Constants((operation,)).read("weight")


def test_the_definitions_own_examples() -> None:
    """From the docstrings of iOS18's constexpr_lut_to_dense (case 1 and 2.1) and constexpr_lut_to_sparse."""
    dense, sparse = DECODERS["constexpr_lut_to_dense"], DECODERS["constexpr_lut_to_sparse"]
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float16).reshape(2, 1, 4, 1)
    assert dense(indices, lut).tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    pairs = np.array([0, 0, 1, 0, 1, 1, 0, 0], np.uint8).reshape(2, 2, 2)
    vectors = np.array([[1, 2, 3], [-1, -2, -3]], np.int8).reshape(1, 1, 1, 2, 3)
    widened = dense(pairs, vectors, np.array(1))
    assert widened[0].tolist() == [[1, 1], [2, 2], [3, 3], [-1, 1], [-2, 2], [-3, 3]]
    mask = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]], np.uint8)
    entries, table = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1], np.uint8), np.array([2, 3], np.float16).reshape(1, 1, 2, 1)
    assert sparse(mask, entries, table)[1].tolist() == [2, 3, 3, 2, 3, 3, 2, 2, 3]


def test_a_changed_bit_changes_the_weight(tmp_path: Path) -> None:
    with conversion():
        path = save(palettize(built_model(network, {"x": X}, "iOS18", "fp16"), mode="uniform", nbits=4), tmp_path / "m.mlpackage")
    before = weights(open_package(path))
    file = path / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(file.read_bytes())
    content[128] ^= 1  # the first data follow the file's and the first tensor's 64 bytes
    file.write_bytes(content)
    changed = [int((a != b).sum()) for a, b in zip(before, weights(open_package(path)), strict=True)]
    assert sum(changed) == 1
