"""Communicators: what the rest of the package knows of other ranks."""

from __future__ import annotations

from typing import Any, Protocol

from hpcrec.backend.array import Array


class Communicator(Protocol):
    """A group of ranks. Arrays keep shape and type; every collective must be entered by all ranks of the group."""

    rank: int
    size: int

    def sum(self, a: Array) -> Array:
        """Return the sum of ``a`` over all ranks, the same on each."""

    def max(self, a: Array) -> Array:
        """Return the element-wise maximum of ``a`` over all ranks, the same on each."""

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """Return the root's (picklable) object on every rank."""

    def gather(self, obj: Any, root: int = 0) -> list[Any] | None:
        """Return the list of all ranks' objects on the root, None elsewhere."""

    def swap(self, outgoing: dict[int, Array], incoming: dict[int, Array]) -> None:
        """Send ``outgoing[r]`` to each neighbour r and fill the buffers ``incoming[r]`` from them; no deadlock."""

    def barrier(self) -> None:
        """Wait until every rank has come here."""

    def split(self, colour: int) -> Communicator:
        """Return the sub-group of the ranks that gave the same colour, in rank order."""
