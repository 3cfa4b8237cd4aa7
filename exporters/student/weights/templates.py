"""What a component must hold: the tensor names and shapes of its diffusers (transformers) class, made on the meta device."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from exporters.errors import Complaint, StudentError
from exporters.student.weights.weight import Weight

OPTIONAL_COMPONENTS = ("text_encoder_3",)
_CLASSES = {
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
}
# Tensors that older checkpoints carry and no forward pass reads, and names that are another tensor's alias.
DEAD_TENSORS = {"text_model.embeddings.position_ids"}
_ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}


def component_class(component: str) -> str:
    """The class that ``model_index.json`` must list for a component."""
    return _CLASSES[component]


def reference_module(component: str, config: dict[str, Any]) -> Any:
    """The component as diffusers (transformers) defines it, on the meta device: shapes without memory.

    Raises:
        StudentError: the configuration is not one of that class.
    """
    import diffusers
    import torch
    import transformers

    name = _CLASSES[component]
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
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


def expected_shapes(component: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the component with its shape."""
    return _template(component, json.dumps(config, sort_keys=True))[0]


def resolve_config(component: str, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with every default of its class filled in."""
    return dict(_template(component, json.dumps(config, sort_keys=True))[1])


@lru_cache(maxsize=32)
def _template(component: str, config: str) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    module = reference_module(component, json.loads(config))
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items() if name not in _ALIASES}
    resolved = module.config if isinstance(module.config, dict) else module.config.to_dict()
    return shapes, dict(resolved)


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
