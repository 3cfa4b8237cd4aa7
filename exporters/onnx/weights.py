"""An ONNX tensor that reads its weight when it is written, and not before."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.transpose import transposed
from exporters.student.weights.weight import Weight
from quantization.codecs.floating import encode_float

# The metadata key that says which rewrite made a node.
STAMP = "flash_deploy.rewritten_by"
_SCHEME_OF = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}


class LazyWeight(ir.LazyTensor):
    """A student's weight as an ONNX initializer: how it is stored, and how to read it when its turn comes.

    Args:
        weight: where it comes from.
        dtype: the type that it is stored in.
        name: the initializer's name.
        transposed: store the transpose of the (two-dimensional) weight.
        padding: zeros appended to each axis, after the transposition.
    """

    def __init__(
        self,
        weight: Weight,
        dtype: ir.DataType,
        name: str,
        transposed: bool = False,
        padding: tuple[int, ...] | None = None,
    ) -> None:
        shape = weight.shape[::-1] if transposed else weight.shape
        self.padding = padding or (0,) * len(shape)
        padded = ir.Shape([size + extra for size, extra in zip(shape, self.padding, strict=True)])
        super().__init__(self._read, dtype=dtype, shape=padded, cache=False, name=name)
        self.weight, self.transposed = weight, transposed

    @property
    def identity(self) -> str:
        """What tells it from all other contents that a student's graphs store; nothing where it is no tensor of the student's."""
        weight = self.weight
        parts = (weight.component, weight.name, self.dtype.name, self.shape.numpy(), self.transposed, self.padding)
        return repr(parts) if weight.name else ""

    def transpose(self) -> LazyWeight:
        """The same weight, stored the other way round."""
        return LazyWeight(self.weight, self.dtype, self.name or "", not self.transposed, self.padding[::-1])

    def stored_as(self, dtype: ir.DataType) -> LazyWeight:
        """The same weight, stored as another type."""
        return LazyWeight(self.weight, dtype, self.name or "", self.transposed, self.padding)

    def padded(self, *padding: int) -> LazyWeight:
        """The same weight with zeros appended to each axis."""
        return LazyWeight(self.weight, self.dtype, self.name or "", self.transposed, padding)

    def read(self) -> np.ndarray:
        """Read and encode it, then transpose and pad it if asked; contiguous.

        Raises:
            SchemeError: it holds NaN or infinity, or does not fit the stored type.
        """
        encoded = encode_float(self.weight.load(), _SCHEME_OF[self.dtype], self.weight.origin)
        if self.transposed:
            encoded = transposed(encoded)
        if any(self.padding):
            encoded = np.pad(encoded, [(0, extra) for extra in self.padding])
        return np.ascontiguousarray(encoded)

    def _read(self) -> ir.TensorProtocol:
        return ir.Tensor(self.read(), name=self.name)
