"""Threads inside compiled loops: where they wait for one another, and how they share out work; no interpreter needed.

A meeting is an int64 array of two counters: arrivals, and pieces of work that are taken. Both only grow, so nobody has
to reset them. A thread that waits turns in place for some microseconds, then lets others have its core.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

_TURNS = 2000
_yield_core = types.ExternalFunction("sched_yield", types.int32())
_compile: Any = njit(nogil=True, cache=True)


@intrinsic  # type: ignore[untyped-decorator]
def _added(typing_context: Any, address: Any, amount: Any) -> Any:
    """Add to the int64 at an address and return what it was, as one step for all threads."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), code


@intrinsic  # type: ignore[untyped-decorator]
def _seen(typing_context: Any, address: Any) -> Any:
    """Return the int64 at an address as the other threads left it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.intp), code


# The checker does not know that numba gives the first argument
_add: Any = _added
_see: Any = _seen


@_compile
def meet(meeting: Any, n_threads: int) -> None:
    """Return when all threads have come; what each of them wrote before is seen by all after."""
    if n_threads == 1:
        return
    at = meeting.ctypes.data
    arrived = _add(at, 1) + 1
    everybody = (arrived + n_threads - 1) // n_threads * n_threads
    turns = 0
    while _see(at) < everybody:
        turns += 1
        if turns > _TURNS:
            _yield_core()


@_compile
def take_one(meeting: Any) -> int:
    """Return the number of the next piece of work that nobody has."""
    return int(_add(meeting.ctypes.data + 8, 1))
