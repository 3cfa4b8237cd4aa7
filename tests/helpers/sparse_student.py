"""Students of any size that take no disk: right headers, and files of holes."""

from __future__ import annotations

import math
from pathlib import Path

from distillation import random_students as students
from distillation.random_students import StudentShape
from distillation.write import itemsize, write_component
from exporters.student.weights.templates import expected_shapes


def make_sparse_student(shape: StudentShape, folder: Path) -> Path:
    """As :func:`distillation.random_students.make_student`, but that every weight is zero."""
    configs = students.configs_of(shape)
    for component, config in configs.items():
        shapes = expected_shapes(component, config)
        write_component(folder / component, config, shapes, dict.fromkeys(shapes, tuple), shape.dtype)
        [file] = (folder / component).glob("*.safetensors")
        with file.open("rb+") as stream:
            stream.truncate(file.stat().st_size + sum(math.prod(size) * itemsize(shape.dtype) for size in shapes.values()))
    students._write_rest(shape, configs, folder)
    return folder
