"""A network that learns: its optimizer, its rate over the stage, its average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distillation.objectives.branches import update_average
from distillation.stages import Optimizer, Stage
from distillation.training.muon import Muon
from exporters.errors import InputError

__all__ = ["DivergedError", "Trainee", "is_inner_matrix", "rate"]


class DivergedError(InputError):
    """A loss or a gradient is no longer a number; what was last saved is still good."""


def rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """The factor on the learning rate at a step, from 0.

    >>> [round(rate(Optimizer(decay="linear", warmup=2), step, 5), 2) for step in range(5)]
    [0.5, 0.8, 0.6, 0.4, 0.2]
    """
    rise = min(1.0, (step + 1) / optimizer.warmup) if optimizer.warmup else 1.0
    done = step / max(steps, 1)
    fall = {"none": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[optimizer.decay]
    return rise * fall


class Trainee:
    """One network, what moves it and its average.

    Args:
        name: for messages.
        module: its parameters that require a gradient are learned.
        optimizer: how.
        steps: of the stage.
        average: decay of the moving average; 0 for none.
    """

    def __init__(self, name: str, module: nn.Module, optimizer: Optimizer, steps: int, average: float = 0.0) -> None:
        self.name, self.module, self.settings, self.steps, self.decay = name, module, optimizer, steps, average
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizers = _optimizers(module, optimizer)
        self.rates = [[group["lr"] for group in each.param_groups] for each in self.optimizers]
        self.average = [p.detach().clone() for p in self.parameters] if average else []

    @classmethod
    def of_student(cls, stage: Stage, student: nn.Module) -> Trainee:
        """The network that a stage is for."""
        return cls("student", student, stage.optimizer, stage.steps, stage.average)

    def learn(self, loss: Tensor | Iterable[Tensor], step: int) -> float:
        """One step down a loss.

        Args:
            loss: what falls; of several parts each is computed when those before have gone back, so that one graph is held.
            step: of the stage.

        Returns:
            The gradient's norm.

        Raises:
            DivergedError: the loss or the gradient is NaN or infinite; nothing has been changed then.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for part in (loss,) if isinstance(loss, Tensor) else loss:
            last = part.item()
            if not math.isfinite(last):
                total = math.nan
                break
            part.backward()  # type: ignore[no-untyped-call]
        else:
            _average_over_processes(self.parameters)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf)
            total = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(total):
            raise DivergedError(
                f"{self.name}: step {step}: the loss is {last:.4g} and its gradient {total:.4g}.",
                remedy=f"lower {self.name}'s learning rate ({self.settings.learning_rate:g}) or its clip "
                f"({self.settings.clip:g}); what was saved before is still good",
            )
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, highest in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = highest * rate(self.settings, step, self.steps)
            optimizer.step()
        if self.average:
            # an average of few steps is of those steps, not of the start (as Adam corrects its bias)
            update_average(self.average, self.parameters, min(self.decay, (step + 1) / (step + 10)))
        return total

    @torch.no_grad()
    def take_average(self) -> None:
        """Put the average in the weights' place, where one is kept: the stage is over."""
        for parameter, average in zip(self.parameters, self.average, strict=False):
            parameter.copy_(average)


def _average_over_processes(parameters: Sequence[Tensor]) -> None:
    """Average the gradients of a network that every process holds whole; those of sharded ones are averaged already."""
    if not (dist.is_available() and dist.is_initialized()) or any(isinstance(p, DTensor) for p in parameters):
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, gradient, mean in zip(parameters, gradients, flat.split([g.numel() for g in gradients]), strict=True):
        if parameter.grad is not None:
            gradient.copy_(mean.view_as(gradient))


def _optimizers(module: nn.Module, settings: Optimizer) -> list[torch.optim.Optimizer]:
    learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not learned:
        return []
    matrices = {name: p for name, p in learned.items() if settings.kind == "muon" and is_inner_matrix(name, p)}
    rest = [p for name, p in learned.items() if name not in matrices]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices.values(), lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay))
    if rest:
        optimizers.append(_adam(rest, settings))
    return optimizers


def is_inner_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon may have it: a matrix or a kernel between hidden states, no embedding, no modulation, no way in or out."""
    return parameter.ndim in (2, 4) and "block" in name and "norm" not in name


def _adam(parameters: Iterable[nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    options = {"lr": settings.learning_rate, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.kind != "adamw8bit":
        return torch.optim.AdamW(parameters, **options)  # type: ignore[arg-type]
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            "adamw8bit needs bitsandbytes.", remedy="pip install 'flash-deploy[distill-gpu]', or kind = 'adamw'"
        ) from error
    return AdamW8bit(parameters, **options)  # type: ignore[no-any-return]
