"""What a component must hold: the tensor names and shapes of its diffusers (transformers) class.

By formula where the configuration is covered (:mod:`exporters.student.weights.parameters`), which opens students without torch.
Else the class is made on the meta device, and its tensors are listed.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

from exporters.errors import Complaint, StudentError
from exporters.student.classes import CLASS_KEY, component_class
from exporters.student.weights.parameters import covered, public, resolved
from exporters.student.weights.shapes import Shapes, tensor_shapes
from exporters.student.weights.weight import Weight

OPTIONAL_COMPONENTS = ("text_encoder_3",)
# Tensors that older checkpoints carry and no forward pass reads, and names that are another tensor's alias.
DEAD_TENSORS = {"text_model.embeddings.position_ids"}
_ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
_LARGEST_TENSOR = 1 << 40  # elements; torch has limits of its own, and says so


def reference_module(component: str, config: dict[str, Any]) -> Any:
    """The component as diffusers (transformers) defines it, on the meta device: shapes without memory.

    Raises:
        StudentError: the configuration is not one of that class.
    """
    import diffusers
    import torch
    import transformers

    name = component_class(component, config)
    arguments = public(config)
    try:
        with torch.device("meta"):
            if component in ("transformer", "vae"):
                return getattr(diffusers, name).from_config(arguments).eval()
            config_class = getattr(transformers, name).config_class
            return getattr(transformers, name)(config_class.from_dict(arguments)).eval()
    except Exception as error:  # any of a dozen types, by which key is wrong
        raise StudentError(
            "A configuration cannot be used.",
            [Complaint(f"{component}: config.json", f"{type(error).__name__}: {error}")],
        ) from error


def expected_shapes(component: str, config: dict[str, Any]) -> Shapes:
    """Every tensor of the component with its shape, in the order of its class.

    Raises:
        StudentError: the configuration is not one of that class.
    """
    if (formula := _by_formula(component, config)) is not None:
        return formula[0]
    return dict(_by_class(component, json.dumps(config, sort_keys=True))[0])


def resolve_config(component: str, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the defaults of its class filled in: all that shape a tensor or that an export reads.

    Raises:
        StudentError: the configuration is not one of that class.
    """
    formula = _by_formula(component, config)
    filled = class_config(component, config) if formula is None else formula[1]
    return filled | {
        key: value for key, value in config.items() if key == CLASS_KEY
    }  # the one note that says what the rest means


def class_config(component: str, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as its class itself writes it, every default filled in.

    Raises:
        StudentError: the configuration is not one of that class.
    """
    return dict(_by_class(component, json.dumps(config, sort_keys=True))[1])


def _by_formula(component: str, config: dict[str, Any]) -> tuple[Shapes, dict[str, Any]] | None:
    """Shapes and resolved configuration; none where the configuration is not covered."""
    if (parameters := covered(component, config)) is None:
        return None
    shapes = tensor_shapes(parameters)
    if max(map(math.prod, shapes.values())) > _LARGEST_TENSOR:
        return None
    return shapes, resolved(parameters, config)


@lru_cache(maxsize=32)
def _by_class(component: str, config: str) -> tuple[Shapes, dict[str, Any]]:
    module = reference_module(component, json.loads(config))
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items() if name not in _ALIASES}
    written = module.config if isinstance(module.config, dict) else module.config.to_dict()
    return shapes, dict(written)


def check_weights(component: str, config: dict[str, Any], weights: dict[str, Weight]) -> list[Complaint]:
    """Compare the tensors that are there with those that must be; aliases and dead tensors are taken out of ``weights``.

    Returns:
        Every complaint: missing, extra and wrongly shaped tensors.
    """
    expected = expected_shapes(component, config)
    for alias, name in _ALIASES.items():
        if alias in weights:
            weights.setdefault(name, weights[alias])
            del weights[alias]
    for name in DEAD_TENSORS & weights.keys():
        del weights[name]
    complaints = [
        Complaint(f"{component}: {name}", "missing", str(list(expected[name]))) for name in expected.keys() - weights.keys()
    ]
    complaints += [
        Complaint(f"{component}: {name}", "unknown tensor", "no such tensor", str(list(weights[name].shape)))
        for name in weights.keys() - expected.keys()
    ]
    complaints += [
        Complaint(f"{component}: {name}", "wrong shape", str(list(expected[name])), str(list(weights[name].shape)))
        for name in expected.keys() & weights.keys()
        if expected[name] != weights[name].shape
    ]
    complaints += [
        Complaint(f"{component}: {name}", "stored as integers", "floating point", str(weight.dtype))
        for name, weight in weights.items()
        if name in expected and weight.dtype.kind == "i"
    ]
    return sorted(complaints, key=lambda complaint: complaint.where)
