"""Muon: orthogonal updates, kernels as matrices, and the same whether matrices go together or one at a time."""

from __future__ import annotations

import pytest
import torch

from distillation.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 9), (2, 9, 4), (1, 1, 5)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    """Between .6 and 1.3 from a hundredth of the largest up: what five steps of the quintic leave (.68 to 1.13 in theory)."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, after = torch.linalg.svdvals(matrices), torch.linalg.svdvals(orthogonalised(matrices))
    assert (after[before > 0.01 * before.amax()] > 0.6).all()
    assert (after < 1.3).all()


def test_directions_stay() -> None:
    matrix = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    moved = left.T @ orthogonalised(matrix)[0] @ right.T
    assert torch.allclose(moved, torch.diag(moved.diag()), atol=1e-4)


def test_alike_matrices_go_together_and_kernels_are_matrices() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = [
        torch.randn(4, 6, generator=generator),
        torch.randn(4, 6, generator=generator),
        torch.randn(4, 2, 3, 1, generator=generator),
    ]
    gradients = [torch.randn(weight.shape, generator=generator) for weight in weights]

    def moved(groups: list[list[int]]) -> list[torch.Tensor]:
        copies = [weight.clone().requires_grad_() for weight in weights]
        for copy, gradient in zip(copies, gradients, strict=True):
            copy.grad = gradient.clone()
        for group in groups:
            Muon([copies[index] for index in group], lr=0.1).step()
        return [copy.detach() for copy in copies]

    for one, other in zip(moved([[0, 1, 2]]), moved([[0], [1], [2]]), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_parameter_without_gradient_stays() -> None:
    weight = torch.ones(3, 3, requires_grad=True)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(weight, torch.ones(3, 3))


def test_it_finds_a_minimum() -> None:
    target = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    weight = torch.zeros(5, 3, requires_grad=True)
    optimizer = Muon([weight], lr=0.05)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert (weight - target).abs().max() < 0.05
