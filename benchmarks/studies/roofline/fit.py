"""Find which share of this machine's peaks its runtimes reach, and how far off a forecast made of that is.

    python -m benchmarks.studies.roofline.bundles work   # three students and the built-in one, each in four schemes
    python -m benchmarks.studies.roofline.fit work/bundles/* --json samples.json
    python -m benchmarks.studies.roofline.fit --samples samples.json --write

Each graph of each ONNX bundle is run in onnxruntime, and denoiser and VAE in OpenVINO too where it is installed: on one thread,
its CPU time, the best of several runs. The shares are fitted to all of them, in the logarithm. Their error is another: for each
student in turn they are fitted to the other students' graphs and predict its own (leave one out). Graphs that take less than a
millisecond are listed, but do not make the range: there a forecast says no more than the order of magnitude.

The machine's own peaks are measured first: fp32 by a large product in each runtime; int8 is four times that where the processor
has VNNI and bf16 twice where it has AVX512-BF16, as the instructions are defined; bandwidth by copying 256 MB.
"""

from __future__ import annotations
