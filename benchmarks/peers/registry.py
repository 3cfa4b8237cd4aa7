"""Every peer by the name of its target."""

from __future__ import annotations

from benchmarks.peers.diffusers_eager import DiffusersEager
from benchmarks.peers.onnxruntime_plain import OnnxruntimePlain
from benchmarks.peers.openvino_nncf import OpenvinoNncf
from benchmarks.peers.peer import Peer

PEERS: dict[str, Peer] = {
    "torch": DiffusersEager("float32"),
    "torch-bf16": DiffusersEager("bfloat16"),
    "plain-onnxruntime": OnnxruntimePlain(int8=False),
    "plain-onnxruntime-int8": OnnxruntimePlain(int8=True),
    "plain-openvino-nncf": OpenvinoNncf(),
}
