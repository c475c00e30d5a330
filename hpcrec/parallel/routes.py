"""How arrays on GPUs travel between ranks: through host memory, by an MPI that knows of GPUs, or by NCCL."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hpcrec.backend import nccl
from hpcrec.backend.array import Array, array_module
from hpcrec.backend.device import settle
from hpcrec.parallel.communicator import Communicator

Route = Literal["host", "mpi", "nccl"]


def settled(*arrays: Array) -> None:
    """Wait until the work that makes those of ``arrays`` on a GPU is done: MPI knows nothing of CUDA's streams."""
    if any(array_module(a) is not np for a in arrays):
        settle()


class Nccl:
    """Sums by NCCL over the GPUs of a communicator's ranks, one GPU for each; it begins at the first sum."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._reducer: nccl.Reducer | None = None

    def takes(self, a: Array) -> bool:
        """Whether an array is on a GPU and of a type that NCCL adds."""
        return nccl.takes(a)

    def sum(self, a: Array) -> Array:
        """Return the sum of an array over all ranks, the same on each, on its GPU; collective."""
        if self._reducer is None:
            group = self._communicator
            ticket = group.broadcast(nccl.ticket() if group.rank == 0 else None)
            self._reducer = nccl.Reducer(group.size, ticket, group.rank)
        return self._reducer.sum(a)
