"""Students of any size that take no disk: right headers, and files of holes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from distillation import random_students as students
from distillation.random_students import DTYPES, StudentShape
from exporters.student.weights.templates import expected_shapes


def make_sparse_student(shape: StudentShape, folder: Path) -> Path:
    """As :func:`distillation.random_students.make_student`, but that every weight is zero."""
    configs = students._configs(shape)
    tag, dtype = DTYPES[shape.dtype]
    for component, config in configs.items():
        target = folder / component
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(config))
        tensors = expected_shapes(component, config)
        stem = "diffusion_pytorch_model" if component in ("transformer", "vae") else "model"
        header = students._header(tensors, tag, dtype)
        with (target / f"{stem}.safetensors").open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + sum(math.prod(size) * dtype.itemsize for size in tensors.values()))
    students._write_rest(shape, configs, folder)
    return folder
