"""The processes of a run: the only file that knows how many there are and where they compute.

``torchrun`` or ``accelerate launch`` start them and say so in the environment; without either there is one. Gradients of networks
that every process holds whole are averaged by :class:`distillation.training.trainee.Trainee`; networks that are too large for
that are sharded here with torch's ``fully_shard``, which averages them itself.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from exporters.errors import InputError

__all__ = ["Processes"]

Piece = TypeVar("Piece")

PATIENCE = dt.timedelta(days=2)
"""While one process judges or writes the others wait: far longer than torch's half an hour. One that is gone is seen at once."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        count: of processes.
        device: that it computes on.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @classmethod
    def joined(cls, device: str = "") -> Processes:
        """Join those that the environment tells of (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``).

        Args:
            device: ``cpu``, ``cuda``, ``mps``; the best that there is where empty.

        Raises:
            InputError: the launcher asks for what is done here, or the device is not there.
        """
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
            raise InputError(
                "accelerate is told to shard the networks itself, and it cannot shard a frozen teacher beside a student.",
                remedy="use accelerate as a launcher only: no fsdp_config; the recipe's processes.shard does it",
            )
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if kind.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise InputError(f"--device {kind}: there is no such device.", remedy="cpu, cuda or mps")
        if kind.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(
                f"--device {kind}: torch sees no CUDA device here.", remedy="--device cpu, or a build of torch for CUDA"
            )
        if kind == "mps" and not torch.backends.mps.is_available():
            raise InputError("--device mps: torch sees no Apple GPU here.", remedy="--device cpu")
        if kind == "cuda":
            kind = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(kind)
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo", timeout=PATIENCE)
        return cls(int(os.environ.get("RANK", "0")), count, kind)

    @property
    def first(self) -> bool:
        """Whether this one writes what is written once."""
        return self.rank == 0

    def samples(self, batch: int, where: str) -> range:
        """The numbers of this process's samples in a batch over all.

        Raises:
            InputError: they cannot be shared out evenly.
        """
        if batch % self.count:
            raise InputError(f"{where}: a batch of {batch} cannot be shared by {self.count} processes: make it a multiple.")
        share = batch // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def turns(self, pieces: Sequence[Piece]) -> Iterator[Piece | None]:
        """This process's share of some work, a piece a turn.

        All take as many turns, so that in each they can do together what all have to; where pieces run out in the last, some have
        none.
        """
        for first in range(0, len(pieces), self.count):
            own = first + self.rank
            yield pieces[own] if own < len(pieces) else None

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def agreed(self, value: int) -> int:
        """The largest of all processes' values: a signal reaches one, and all have to stop after the same step."""
        if self.count == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def summed(self, tensor: Tensor) -> Tensor:
        """A tensor that each has, summed over all."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def shard(self, network: Any, blocks: Any, *, half: bool = False) -> None:
        """Shard a network over the processes in place, a block at a time.

        Args:
            network: all of it.
            blocks: its repeated parts, gathered one after another.
            half: compute in bfloat16; weights stay in fp32, gradients are summed in it.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if half else MixedPrecisionPolicy()
        for block in blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(network, mp_policy=policy)

    def whole(self, network: nn.Module) -> dict[str, Tensor]:
        """A network's tensors, gathered where they are shared out: all processes call this, and each has all of them then."""
        return {
            name: tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
            for name, tensor in network.state_dict().items()
        }

    def end(self, code: int = 0) -> None:
        """The run is over: all leave together; of several processes each exits here, with a code.

        At once, without the interpreter's own end: a thread of torch that asks for Python's lock then aborts the process, now and
        then ("terminate called without an active exception", 3 of 38 runs on a busy machine; Python 3.11, torch 2.13).
        """
        if self.count > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
