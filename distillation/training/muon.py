"""Muon: momentum whose matrices are made orthogonal before they are applied (kellerjordan.github.io/posts/muon, 2024).

torch's own takes matrices alone, one at a time. Here kernels of convolutions are matrices too (``[out, in * height * width]``),
and those of one shape go through the iteration together: a small network has dozens, and each would cost more calls than work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Muon", "orthogonalised"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steepest at 0, so that small singular values rise first


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices ``[count, rows, columns]`` with all singular values near 1 (between .7 and 1.2), by Newton and Schulz."""
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def _shared_out(matrices: Tensor) -> Tensor:
    """Matrices made orthogonal, each by one of the processes that hold them all."""
    if not (dist.is_available() and dist.is_initialized()):
        return orthogonalised(matrices)
    rank, count = dist.get_rank(), dist.get_world_size()
    share = -(-len(matrices) // count)
    own = matrices.new_zeros(share, *matrices.shape[1:])
    given = matrices[rank * share : (rank + 1) * share]
    if len(given):
        own[: len(given)] = orthogonalised(given)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name that torch before 2.13 has
    gathered = matrices.new_empty(count * share, *matrices.shape[1:])
    gather(gathered, own)
    return gathered[: len(matrices)]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, scaled so that a step's size per element does not depend on the matrix's proportions.

    Args:
        parameters: with two dimensions or more; all but the first are columns.
        lr: learning rate.
        momentum: of the moving average.
        weight_decay: decoupled.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no loss is computed anew
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for shape, parameters in alike.items():
                for parameter in parameters:
                    state = self.state[parameter]
                    average = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                    average.lerp_(parameter.grad, 1 - group["momentum"])
                moved = [p.grad.lerp(self.state[p]["momentum_buffer"], group["momentum"]).flatten(1) for p in parameters]
                updates = _shared_out(torch.stack(moved)) * max(1, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update.reshape(parameter.shape), alpha=group["lr"])
