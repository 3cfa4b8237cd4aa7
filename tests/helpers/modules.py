"""Traced modules in torch, with their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from exporters.layouts.spec import GraphSpec
from exporters.restructure.base import set_precision


def torch_module(spec: GraphSpec, precision: torch.dtype = torch.float32) -> torch.nn.Module:
    """The module that is traced, with its weights."""
    with torch.device("meta"):
        module: Any = spec.module()
    set_precision(module, precision)
    weights = spec.weights(module)
    kinds = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    state = {
        name: torch.from_numpy(np.array(w.load()).astype(np.float32 if kinds[name].is_floating_point else np.int64)).to(
            kinds[name]
        )
        for name, w in weights.items()
    }
    module.load_state_dict(state, strict=True, assign=True)
    whole: torch.nn.Module = module.eval()
    return whole
