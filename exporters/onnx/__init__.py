"""Student graphs to ONNX: trace on the meta device, clean up, stream the weights."""
