"""Adversarial heads on the fake model's features: what the score cannot see, small heads learn to see.

A head reads the tokens of one block of the fake model and says real or fake; the losses are the non-saturating softplus ones of
DMD2 (2405.14867), with R1 on the features of real data against collapse. As in SD3.5-Flash and NitroFusion (2412.02030) each
head is thrown away with probability .005 a step and begins anew, its optimizer state too, so that none is overfitted for long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Head", "Heads", "discriminator_loss", "generator_loss", "r1", "refresh"]

REFRESH_PROBABILITY = 0.005


class Head(nn.Module):
    """Mean over tokens, then two layers: ``[batch, tokens, width]`` to a logit ``[batch]``."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, 1)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Begin anew; the last layer at zero, so that a fresh head says nothing (logit 0) and pushes nowhere."""
        with torch.no_grad():
            self.norm.weight.fill_(1)
            self.norm.bias.zero_()
            self.inner.weight.normal_(0, self.inner.in_features**-0.5, generator=generator)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """The logit of each sample, positive for real."""
        hidden = F.gelu(self.inner(self.norm(features)))  # before the mean: one odd token is not averaged away
        logit: Tensor = self.outer(hidden.mean(1))
        return logit.squeeze(-1)


class Heads(nn.ModuleList):
    """One head for each block whose features are read."""

    def __init__(self, widths: Sequence[int], hidden: int = 64) -> None:
        super().__init__(Head(width, hidden) for width in widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits ``[batch, heads]`` of features ``[batch, tokens, width]``, one a head."""
        return torch.stack([head(block) for head, block in zip(self, features, strict=True)], 1)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """``mean softplus(-logit)``: ln 2 at logit 0, where its slope is -1/2."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """``mean softplus(-real) + mean softplus(fake)``: 2 ln 2 where nothing can be told apart."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1(heads: Heads, real_features: Sequence[Tensor]) -> Tensor:
    """The squared gradient of the logits in the features of real data, a sample; 0 for heads that are constant.

    Mescheder et al., 1801.04406, in the features and not in the picture: the fake model is not differentiated.
    """
    leaves = [block.detach().requires_grad_() for block in real_features]
    slopes = torch.autograd.grad(heads(leaves).sum(), leaves, create_graph=True)
    return torch.stack([slope.flatten(1).square().sum(1).mean() for slope in slopes]).mean()


def refresh(heads: Heads, chances: Sequence[float], optimizer: torch.optim.Optimizer, seed: int) -> list[int]:
    """Begin those heads anew whose chance, a number in [0, 1), is below .005, their optimizer state too.

    Args:
        heads: all of them.
        chances: one for each.
        optimizer: theirs.
        seed: of the new weights, the same on every process.

    Returns:
        The numbers of the heads that began anew.
    """
    renewed = [index for index, chance in enumerate(chances) if chance < REFRESH_PROBABILITY]
    for index in renewed:
        head: Head = heads[index]  # type: ignore[assignment]
        head.reset_parameters(torch.Generator(head.inner.weight.device).manual_seed(seed + index))
        for parameter in head.parameters():
            optimizer.state.pop(parameter, None)
    return renewed
