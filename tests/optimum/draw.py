"""Draw from an optimum-layout bundle with optimum-onnx alone; runs in that package's own environment.

python draw.py BUNDLE PICTURES.npy LATENTS.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import ORTStableDiffusion3Pipeline

bundle, pictures, latents = sys.argv[1:]
manifest = json.loads((Path(bundle) / "manifest.json").read_text())
pipeline = ORTStableDiffusion3Pipeline.from_pretrained(bundle)
pipeline.set_progress_bar_config(disable=True)
size = {key: manifest["picture"][key] for key in ("height", "width")}
noise = np.random.default_rng(0).standard_normal((1, 16, size["height"] // 8, size["width"] // 8)).astype(np.float32)
arguments = {"max_sequence_length": manifest["text"]["max_sequence_length"], "output_type": "np", **size}
prompt = "a red circle left of a blue square on a white background"
images = pipeline(
    prompt, latents=torch.from_numpy(noise), sigmas=[1, 0.75, 0.5, 0.25], num_inference_steps=4, guidance_scale=1.0, **arguments
).images
np.save(pictures, images)
np.save(latents, noise)
# Guidance doubles the batch, two images of a prompt double it again: both are dynamic.
guided = pipeline(prompt, num_inference_steps=2, guidance_scale=3.0, num_images_per_prompt=2, **arguments).images
assert guided.shape == (2, size["height"], size["width"], 3)
assert np.isfinite(guided).all()
