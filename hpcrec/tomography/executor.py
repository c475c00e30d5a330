"""Who runs the work of the tomography stage: this process, its threads, or the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from hpcrec.errors import WorkersLostError


class Executor(Protocol):
    """Runs pure functions.

    Items passed on are values, or handles from :meth:`keep` and :meth:`share`, which a worker sees as the values behind
    them. Results keep the order of the items. ``device`` says where the workers' large arrays live; with "gpu" each
    worker's own GPU is current while it works. Kept results stay there, and with the worker that computed them; what
    :meth:`map` and :meth:`sum` bring lives on the host if another process made it.

    Where handles are concerned, :class:`WorkersLostError` tells that what they stood for is gone. ``generation`` counts
    such losses: handles of an earlier one are void, also where the loss was met by other work.
    """

    device: Literal["cpu", "gpu"]
    generation: int

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return ``function`` of the items as values, brought here."""

    def sum(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> Any:
        """Return the sum of ``function`` of the items, added where they are, see :func:`add_in_pairs`; brought here."""

    def keep(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return handles of the results, which stay where they were computed."""

    def share(self, value: Any) -> Any:
        """Return a handle of one value made available to every worker once."""

    def recover(self, fault: WorkersLostError) -> None:
        """Make ready to go on with the workers that are left; raises ``fault`` if there is no hope."""


def add_in_pairs(parts: list[Any], adder: Callable[[list[Any], list[Any]], list[Any]]) -> Any:
    """Return the sum of ``parts``: neighbours are added, then neighbours of these sums, and so on.

    The order follows from the number of parts alone, so the sum is the same to the last bit wherever it is made.
    ``adder`` adds two lists item by item.
    """
    while len(parts) > 1:
        parts = [*adder(parts[:-1:2], parts[1::2]), *parts[len(parts) & ~1 :]]
    return parts[0]


class InlineExecutor:
    """Runs everything in this process, in ``n_threads`` threads (the projector leaves the interpreter lock).

    With the device "gpu" work goes to the GPU that is current in the calling thread, and through that thread alone.
    """

    generation = 0

    def __init__(self, n_threads: int = 1, device: Literal["cpu", "gpu"] = "cpu") -> None:
        self.n_threads, self.device = n_threads, device

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return ``function`` of the items, in order."""
        if self.n_threads == 1 or self.device == "gpu":
            return list(map(function, *iterables))
        with ThreadPoolExecutor(self.n_threads) as pool:
            return list(pool.map(function, *iterables))

    def sum(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> Any:
        """Return the sum of ``function`` of the items."""
        return add_in_pairs(self.map(function, *iterables), lambda left, right: [a + b for a, b in zip(left, right)])

    def keep(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return the results themselves: nothing is far away."""
        return self.map(function, *iterables)

    def share(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def recover(self, fault: WorkersLostError) -> None:
        """Raise ``fault``: this process is its only worker."""
        raise fault
