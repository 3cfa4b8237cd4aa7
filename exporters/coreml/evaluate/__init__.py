"""Run a saved Core ML package (ML program) without Core ML, and say where its 16-bit arithmetic goes wrong.

The evaluator reads what a device would read, the package's protobuf and weight file, and shares no code with whatever wrote
them: what it computes is evidence about the file. ::

    folder ──package──> specification ──program──> operations ──check──> Program ──run──> outputs
              │                            │                                │
              └ paths stay inside          └ blob: weights, mapped          ├ audit:      what each operation gave
                                             constants: decompression       └ comparison: fp16 beside fp32

``fp32`` computes everything in 32 bits with the constants as they are stored; ``fp16`` rounds each operation's result to the type
that the program declares for it. Sums are accumulated in 32 bits in both, which no device promises: a real one may accumulate in
less, fuse operations or flush subnormals. A bad figure here is bad on a device; a good one has still to be measured there.
"""

from exporters.coreml.evaluate.audit import Audit, Record
from exporters.coreml.evaluate.comparison import Comparison, Finding, compare
from exporters.coreml.evaluate.package import open_package
from exporters.coreml.evaluate.program import Port, Program
from exporters.coreml.evaluate.run import evaluate

__all__ = ["Audit", "Comparison", "Finding", "Port", "Program", "Record", "compare", "evaluate", "open_package"]
