"""Students on disk, changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file

from exporters.student.student import Student
from exporters.student.weights.checkpoint import SafetensorsFile

WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(file: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def check_decoded(made: Path, name: str) -> None:
    """That a weight in a file is read as ``expected`` in the same file says, in the type that its name ends with."""
    weight = SafetensorsFile(made, "transformer").weights([f"{name}.weight"], "transformer")[f"{name}.weight"]
    expected = load_torch_file(made)[f"expected.{name}"]
    assert weight.shape == tuple(expected.shape)
    assert weight.dtype.name == name.rpartition(".")[2]
    value = weight.load()
    assert value.dtype == weight.dtype
    assert np.array_equal(value.astype(np.float32), expected.float().numpy())


def shard(folder: Path, stem: str, variant: str = "") -> None:
    """Split a component's single file in two, as save_pretrained does."""
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    names = sorted(tensors)
    middle = f".{variant}" if variant else ""
    files = [f"{stem}{middle}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = (names[::2], names[1::2])
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file)
    weight_map = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (folder / f"{stem}.safetensors.index{middle}.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def same_weights(a: Student, b: Student) -> bool:
    return all(
        np.array_equal(weight.load(), b.weights[component][name].load())
        for component, weights in a.weights.items()
        for name, weight in weights.items()
    )
