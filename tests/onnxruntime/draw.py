"""Draw with the installed onnxruntime, whatever the bundle asks for: 0 if it is the picture that is kept, else 1.

python draw.py BUNDLE PICTURE.npy [--keep]
"""

import sys

import numpy as np
import onnxruntime

import deploy.sessions
from deploy.errors import InputError
from deploy.requirements import check_onnxruntime
from deploy.runtime import Pipeline

REQUIRED_DB = 40.0  # kernels of different releases round differently; where one is wrong, nothing is alike
bundle, file, *keep = sys.argv[1:]
deploy.sessions.check_onnxruntime = lambda manifest: None
pipeline = Pipeline(bundle, runtime="onnxruntime")
try:
    check_onnxruntime(pipeline.manifest)
    allowed = True
except InputError:
    allowed = False
try:
    picture = pipeline.generate("a red circle left of a blue square on a white background", seed=0)
except InputError as error:
    print(f"    onnxruntime {onnxruntime.__version__}: {str(error).splitlines()[1][:160]}")
    sys.exit(1)
if keep:
    np.save(file, picture)
    sys.exit(0)
mean_square = float(np.mean((np.load(file).astype(np.float64) - picture) ** 2))
db = 999.0 if mean_square == 0 else -10 * np.log10(mean_square)
print(f"    onnxruntime {onnxruntime.__version__}: {db:.1f} dB PSNR")
if (db >= REQUIRED_DB) != allowed:
    print("    the manifest says otherwise")
sys.exit(int(db < REQUIRED_DB))
