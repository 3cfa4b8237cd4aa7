"""A key that is too narrow would give a wrong graph in silence: all that a trace depends on is changed here, one by one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exporters.coreml.export import _prepare
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphOptions, GraphSpec
from exporters.layouts.swift_schedule import client_schedule
from exporters.onnx import trace as tracing
from exporters.onnx import trace_key as keys
from exporters.onnx.trace import trace
from exporters.onnx.trace_cache import VARIABLE
from exporters.onnx.trace_key import trace_key
from exporters.restructure import attention, base, denoiser, vae
from exporters.restructure.clip import ACTIVATIONS
from exporters.restructure.denoiser import Denoiser, null_tokens_as_bias
from exporters.restructure.text import TextEncoder
from exporters.restructure.vae import VaeDecoder, keep_group_norms
from exporters.student.student import Student
from tests.conftest import ROOT

OPTIONS = GraphOptions("native", 32, 48, (1000.0, 500.0), clip_tokens=20, keep_t5=False, max_sequence_length=7)
TEXT, CONDITIONER, DENOISER, VAE = range(4)

Prepare = Callable[[torch.nn.Module], None]


def key(spec: GraphSpec, compute: torch.dtype = torch.float32, prepare: Prepare | None = None, wide: tuple[str, ...] = ()) -> Any:
    return trace_key(tracing._prepared(spec, compute, prepare, wide), spec, tracing._exported)


@pytest.fixture
def graphs(students: dict[str, Student]) -> list[GraphSpec]:
    return plan_graphs(students["tiny"], OPTIONS)


LAYOUTS = {
    "native": {},
    "native dynamic T5": {"dynamic": True, "keep_t5": True},
    "optimum": {"layout": "optimum", "dynamic": True, "keep_t5": True},
    "swift": {"layout": "swift", "max_sequence_length": 77, "keep_t5": True, "client": client_schedule((1.0, 0.5, 0.0), 3.0)},
}


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("prepare", [None, _prepare], ids=["ONNX", "Core ML"])
def test_every_graph_has_a_key_of_its_own(changes: dict, prepare: Prepare | None, students: dict[str, Student]) -> None:
    def all_keys() -> list[str | None]:
        specs = plan_graphs(students["tiny"], replace(OPTIONS, **changes))
        return [key(spec, compute, prepare) for spec in specs for compute in (torch.float32, torch.float16)]

    graph_keys = all_keys()
    assert None not in graph_keys
    assert len(set(graph_keys)) == len(graph_keys)
    assert all_keys() == graph_keys


def test_tracing_leaves_the_key_as_it_was(graphs: list[GraphSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch and onnxscript note down what they found out, some of it on the functions that they were given."""
    before = key(graphs[CONDITIONER])
    monkeypatch.delenv(VARIABLE)
    trace(graphs[CONDITIONER], torch.float32)
    assert key(graphs[CONDITIONER]) == before


FIND = """
import os
import sys
from pathlib import Path
import torch
from exporters.layouts.plan import plan_graphs
from exporters.layouts.spec import GraphOptions
from exporters.onnx.trace import trace
from exporters.student.open import open_student

def refuse(*_, **__):
    raise AssertionError("traced again")

torch.export.export = refuse
student, other = sys.argv[1:]
options = GraphOptions("native", 32, 48, (1000.0, 500.0), clip_tokens=20, keep_t5=False, max_sequence_length=7)
graph = plan_graphs(open_student(Path(student)), options)[1]
trace(graph, torch.float32)
os.environ["FLASH_DEPLOY_TRACES"] = other
trace(graph, torch.float32)
"""


def test_another_process_finds_the_trace(
    students: dict[str, Student], graphs: list[GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    trace(graphs[CONDITIONER], torch.float32)
    command = [sys.executable, "-c", FIND, str(students["tiny"].path), str(tmp_path / "empty")]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    first, *_, last = re.findall(r"line (\d+), in <module>|AssertionError: (traced again)", process.stderr)
    assert first[0] == str(FIND.count("\n")), process.stderr  # the last line, where no trace is kept
    assert last[1] == "traced again"


def port(spec: GraphSpec, **changes: Any) -> GraphSpec:
    return replace(spec, inputs=(replace(spec.inputs[0], **changes), *spec.inputs[1:]))


SPECS: dict[str, Callable[[GraphSpec], GraphSpec]] = {
    "name": lambda spec: replace(spec, name="other"),
    "a port's name": lambda spec: port(spec, name="other"),
    "a port's shape": lambda spec: port(spec, shape=(1, 16, 4, 8)),
    "a size that is symbolic": lambda spec: port(spec, shape=(1, 16, 4, "width")),
    "a port's type": lambda spec: port(spec, dtype="int64"),
    "an output": lambda spec: replace(spec, outputs=()),
    "an input as an output": lambda spec: replace(spec, inputs=spec.inputs[:-1], outputs=(spec.inputs[-1], *spec.outputs)),
}


@pytest.mark.parametrize("change", SPECS.values(), ids=SPECS)
def test_ports_are_in_the_key(change: Callable[[GraphSpec], GraphSpec], graphs: list[GraphSpec]) -> None:
    assert key(change(graphs[DENOISER])) not in (None, key(graphs[DENOISER]))


def test_precision_and_form_are_in_the_key(graphs: list[GraphSpec]) -> None:
    graph_keys = [
        key(graphs[DENOISER]),
        key(graphs[DENOISER], torch.float16),
        key(graphs[DENOISER], torch.float16, wide=("transformer_blocks.0.ff.net.2",)),
        key(graphs[DENOISER], torch.float16, wide=("transformer_blocks.0.attn",)),
        key(graphs[DENOISER], prepare=null_tokens_as_bias),
        key(graphs[VAE]),
        key(graphs[VAE], prepare=keep_group_norms),
    ]
    assert len({*graph_keys, None}) == len(graph_keys) + 1


def with_config(configs: Mapping[str, Any], component: str, **changes: Any) -> dict[str, Any]:
    return {**configs, component: {**configs[component], **changes}}


# Constructor arguments, and configurations: those that shapes show, and those that only arithmetic does.
MODULES: dict[str, tuple[int, Callable[[Mapping[str, Any]], object]]] = {
    "grid": (DENOISER, lambda c: Denoiser(c["transformer"], (3, 2), 7)),
    "dynamic grid": (DENOISER, lambda c: Denoiser(c["transformer"], None, 7)),
    "null tokens": (DENOISER, lambda c: Denoiser(c["transformer"], (2, 3), 8)),
    "no QK norm": (DENOISER, lambda c: Denoiser(with_config(c, "transformer", qk_norm=None)["transformer"], (2, 3), 7)),
    "heads": (
        DENOISER,
        lambda c: Denoiser(
            with_config(
                c,
                "transformer",
                num_attention_heads=c["transformer"]["attention_head_dim"],
                attention_head_dim=c["transformer"]["num_attention_heads"],
            )["transformer"],
            (2, 3),
            7,
        ),
    ),
    "scaling factor": (VAE, lambda c: VaeDecoder(with_config(c, "vae", scaling_factor=0.5)["vae"])),
    "shift factor": (VAE, lambda c: VaeDecoder(with_config(c, "vae", shift_factor=0.5)["vae"])),
    "groups of norms": (VAE, lambda c: VaeDecoder(with_config(c, "vae", norm_num_groups=8)["vae"])),
    "raw": (VAE, lambda c: VaeDecoder(c["vae"], raw=False)),
    "end of text": (TEXT, lambda c: TextEncoder(with_config(c, "text_encoder", eos_token_id=5), keep_t5=False)),
    "epsilon": (TEXT, lambda c: TextEncoder(with_config(c, "text_encoder_2", layer_norm_eps=1e-6), keep_t5=False)),
    "activation": (TEXT, lambda c: TextEncoder(with_config(c, "text_encoder", hidden_act="gelu_new"), keep_t5=False)),
    "T5": (TEXT, lambda c: TextEncoder(c, keep_t5=True)),
}


@pytest.mark.parametrize(("graph", "module"), MODULES.values(), ids=MODULES)
def test_the_module_is_in_the_key(
    graph: int, module: Callable[[Mapping[str, Any]], object], students: dict[str, Student], graphs: list[GraphSpec]
) -> None:
    spec = replace(graphs[graph], module=lambda: module(students["tiny"].configs))
    assert key(spec) not in (None, key(graphs[graph]))


def test_activations_are_told_apart(students: dict[str, Student], graphs: list[GraphSpec]) -> None:
    """Most are functions without a name, two of them with the same names in them."""
    names = ACTIVATIONS.keys() - {"gelu_pytorch_tanh"}  # another name of gelu_new
    configs = [with_config(students["tiny"].configs, "text_encoder", hidden_act=name) for name in names]
    specs = [replace(graphs[TEXT], module=lambda c=c: TextEncoder(c, keep_t5=False)) for c in configs]
    assert len({None, *map(key, specs)}) == len(names) + 1


CODE: dict[str, tuple[int, object, str, object]] = {
    "a constant": (DENOISER, denoiser, "EPS", 1e-2),
    "a function": (DENOISER, denoiser, "_modulate", lambda x, scale, shift: x),
    "a function of another module": (DENOISER, denoiser, "with_null_channels", lambda *rest: rest[:2]),
    "a method": (DENOISER, denoiser._FeedForward, "forward", lambda self, x: x),
    "a method of a base": (VAE, base.Linear, "forward", lambda self, x: x),
    "an attribute of a class": (DENOISER, denoiser._Attention, "null_form", "bias"),
    "a processor": (VAE, vae._AttentionProcessor, "__call__", lambda *_, **__: None),
    "the operator's shape": (DENOISER, attention, "_", lambda query, *_: query),
    "the opset": (VAE, tracing, "OPSET", 24),
    "an operator's translation": (VAE, tracing, "_attention", lambda *_: None),
    "the examples": (VAE, tracing, "_examples", lambda spec: ([], ())),
}


@pytest.mark.parametrize(("graph", "place", "name", "value"), CODE.values(), ids=CODE)
def test_code_is_in_the_key_as_it_was_loaded(
    graph: int, place: Any, name: str, value: object, graphs: list[GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(graphs[graph])
    monkeypatch.setattr(place, name, value)
    assert key(graphs[graph]) not in (None, before)
    monkeypatch.undo()
    assert key(graphs[graph]) == before


@pytest.mark.parametrize("library", keys.LIBRARIES)  # type: ignore[attr-defined]
def test_versions_are_in_the_key(library: str, graphs: list[GraphSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    before, version = key(graphs[CONDITIONER]), keys.metadata.version  # type: ignore[attr-defined]
    monkeypatch.setattr(keys.metadata, "version", lambda name: "99" if name == library else version(name))  # type: ignore[attr-defined]
    assert key(graphs[CONDITIONER]) not in (None, before)


def test_sources_are_in_the_key(graphs: list[GraphSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(graphs[CONDITIONER])
    monkeypatch.setattr(keys, "source_hash", lambda: "another")
    assert key(graphs[CONDITIONER]) not in (None, before)


def test_the_default_type_is_in_the_key(graphs: list[GraphSpec]) -> None:
    module = tracing._prepared(graphs[CONDITIONER], torch.float32, None, ())
    torch.set_default_dtype(torch.float64)
    try:
        double_key = trace_key(module, graphs[CONDITIONER], tracing._exported)
    finally:
        torch.set_default_dtype(torch.float32)
    assert double_key not in (None, key(graphs[CONDITIONER]))


def test_what_cannot_be_described_is_not_kept(graphs: list[GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "traces"))

    def listening(module: torch.nn.Module) -> None:
        module.listener = object()  # type: ignore[assignment]

    assert key(graphs[CONDITIONER], prepare=listening) is None
    trace(graphs[CONDITIONER], torch.float32, listening)
    assert not (tmp_path / "traces").exists()
