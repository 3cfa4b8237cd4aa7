"""A guided step as two calls of the transformer, or as one of a batch of two: which costs less.

    flash-deploy build STUDENT --layout optimum -o bundle
    python -m benchmarks.studies.guidance_calls bundle [BUNDLE ...]

Of the layout ``optimum``, whose graphs take any batch; with onnxruntime on the CPU, interleaved.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.timing import interleave, session, table
from benchmarks.studies.command import inspect


def inputs(about: Mapping[str, Any], transformer: Mapping[str, Any], batch: int) -> dict[str, np.ndarray]:
    """What a step's transformer is given, of noise: text and a picture of the bundle's own size."""
    picture, text = about["picture"], about["text"]
    sizes = {
        "batch": batch,
        "latent_height": picture["height"] // picture["pixels_per_latent"],
        "latent_width": picture["width"] // picture["pixels_per_latent"],
        "sequence": text["tokenizers"][0]["max_length"] + text["max_sequence_length"],
    }
    rng = np.random.default_rng(0)
    shapes = {port["name"]: [sizes.get(size, size) for size in port["shape"]] for port in transformer["inputs"]}
    given: dict[str, Any] = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return given | {"timestep": np.full(batch, 500, np.float32)}


def _twice(call: Callable[[], Any]) -> None:
    call()
    call()


def main() -> None:
    """Run both ways in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for folder in options.bundles:
        about = inspect(folder)
        if about["layout"] != "optimum":
            sys.exit(f"{folder}: its graphs take one picture; build it with --layout optimum")
        transformer = next(graph for graph in about["graphs"] if graph["name"] == "transformer")
        loaded = session(folder / transformer["path"], options.threads)
        one, two = (functools.partial(loaded.run, None, inputs(about, transformer, batch)) for batch in (1, 2))
        ways = {"two calls": functools.partial(_twice, one), "one call, a batch of two": two, "one call, not guided": one}
        timings = interleave(ways, options.runs)
        schemes = ", ".join(dict.fromkeys(rule["scheme"] for rule in about["profile"]))
        print(f"\n{about['student']['name']}, {schemes}, {about['picture']['width']} x {about['picture']['height']} px\n")
        print(table(timings, "two calls"))


if __name__ == "__main__":
    main()
