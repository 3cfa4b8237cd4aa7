"""Which samples a step takes: each once an epoch, in an order that nobody keeps.

Sample ``s`` of step ``n`` is at place ``n * batch + s`` of an endless row of epochs, and each epoch has its own permutation, of
which a single place can be computed: a Feistel network on pairs of numbers (Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002, section 5), whose round function is :func:`distillation.counters.philox`, keyed by the seed and counted by the
epoch. A run that goes on needs only its step, and processes that share a step take together what one would take.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distillation.counters import philox

__all__ = ["numbers_of"]

ROUNDS = 6  # four suffice on large domains (Luby and Rackoff, 1988); small ones mix slower
_LOW = 0xFFFFFFFF


def numbers_of(step: int, batch: int, samples: Sequence[int], length: int, seed: int) -> list[int]:
    """The numbers of the samples that this process takes in a step.

    Args:
        step: from 0.
        batch: samples a step, over all processes.
        samples: this process's, by their numbers in the step.
        length: of the source.
        seed: of the order.

    >>> sorted(numbers_of(0, 4, range(4), 10, 7) + numbers_of(1, 4, range(4), 10, 7) + numbers_of(2, 4, range(2), 10, 7))
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if length < 1:
        raise ValueError("there are no samples to choose from")
    places = step * batch + torch.as_tensor(list(samples), dtype=torch.int64)
    epochs = places // length
    numbers = _permuted(places % length, epochs, length, seed)
    while bool((outside := numbers >= length).any()):  # the domain is a little larger: go on until the walk is back inside
        numbers[outside] = _permuted(numbers[outside], epochs[outside], length, seed)
    chosen: list[int] = numbers.tolist()
    return chosen


def _permuted(x: Tensor, epochs: Tensor, length: int, seed: int) -> Tensor:
    """A permutation of ``[0, rows * columns)``, the smallest such domain that is nearly square and holds ``length``."""
    rows = math.isqrt(length - 1) + 1
    columns = -(-length // rows)
    digest = hashlib.blake2b(f"{seed}\0order of samples".encode(), digest_size=8).digest()
    key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    row, column = x // columns, x % columns
    for turn in range(ROUNDS):
        other = column if turn % 2 == 0 else row
        counter = (other, torch.full_like(x, turn), epochs & _LOW, epochs >> 32)
        high, low, _, _ = philox(counter, key)
        word = (high >> 1 << 32) + low  # 63 bits: what a remainder of them leans towards small numbers is nothing
        if turn % 2 == 0:
            row = (row + word % rows) % rows
        else:
            column = (column + word % columns) % columns
    return row * columns + column
