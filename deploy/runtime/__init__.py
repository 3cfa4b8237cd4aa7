"""Text to picture from a bundle: numpy, onnxruntime, tokenizers and Pillow. What this face shows is public (docs/api.md).

Importing it loads neither torch nor what measures, builds or stores; a test holds it to that.
"""

from deploy.runtime.arguments import DrawingOptions, Progress, StepCallback
from deploy.runtime.noise import Noise
from deploy.runtime.pipeline import Pipeline
from exporters.choices import Runtime

__all__ = ["DrawingOptions", "Noise", "Pipeline", "Progress", "Runtime", "StepCallback"]
