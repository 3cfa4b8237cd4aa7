"""Draw with the installed onnxruntime, whatever the bundle asks for.

python draw.py BUNDLE PICTURE.npy [--keep]

Exit code: 0 if it is the picture that is kept and the bundle allows this version, 1 if neither is so, 2 if they disagree.
"""

import sys

import numpy as np
import onnxruntime

import deploy.runtime.sessions
from deploy.bundle.requirements import check_onnxruntime
from deploy.errors import InputError
from deploy.runtime.pipeline import Pipeline

PROMPT = "a red circle left of a blue square on a white background"
REQUIRED_DB = 40.0  # kernels of different releases round differently; where one is wrong, nothing is alike


def allowed(pipeline: Pipeline) -> bool:
    try:
        check_onnxruntime(pipeline.manifest)
    except InputError:
        return False
    return True


def drawn_alike(pipeline: Pipeline, file: str) -> bool:
    try:
        picture = pipeline.generate(PROMPT, seed=0)
    except InputError as error:
        print(f"    onnxruntime {onnxruntime.__version__}: {str(error).splitlines()[1][:160]}")
        return False
    mean_square = float(np.mean((np.load(file).astype(np.float64) - picture) ** 2))
    db = 999.0 if mean_square == 0 else -10 * float(np.log10(mean_square))
    print(f"    onnxruntime {onnxruntime.__version__}: {db:.1f} dB PSNR")
    return db >= REQUIRED_DB


def main() -> int:
    bundle, file, *keep = sys.argv[1:]
    deploy.runtime.sessions.check_onnxruntime = lambda manifest: None  # type: ignore[attr-defined]
    pipeline = Pipeline(bundle, runtime="onnxruntime")
    if keep:
        np.save(file, pipeline.generate(PROMPT, seed=0))
        return 0
    answers = {allowed(pipeline), drawn_alike(pipeline, file)}
    return {(True,): 0, (False,): 1}.get(tuple(answers), 2)


if __name__ == "__main__":
    sys.exit(main())
