"""Arrays with one entry a pattern: gathered from the ranks that own the patterns, and handed out to any number of them.

All functions are collective over ``communicator``; ``own`` (n,) are the positions of this rank, ascending.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from hpcrec.backend.array import Array, IntArray, to_host
from hpcrec.parallel.communicator import Communicator


def gather_patterns(communicator: Communicator, own: IntArray, values: Array) -> Array | None:
    """Return (position, …) on rank 0 (host memory) from each rank's ``values`` (n, …); None elsewhere."""
    owners = communicator.gather(own)
    mine = np.ascontiguousarray(to_host(values))
    if owners is None:
        communicator.swap({0: mine} if mine.size else {}, {})
        return None
    if communicator.size == 1:
        return mine
    buffers = {r: np.empty((len(o), *mine.shape[1:]), mine.dtype) for r, o in enumerate(owners) if r and len(o)}
    communicator.swap({}, buffers)
    whole = np.empty((sum(map(len, owners)), *mine.shape[1:]), mine.dtype)
    for rank, part in {0: mine, **buffers}.items():
        whole[owners[rank]] = part
    return whole


def hand_out_patterns(communicator: Communicator, own: IntArray, whole: Array | None) -> Array:
    """Return this rank's part (n, …) of rank 0's array (position, …), which the others need not have."""
    form = communicator.broadcast(None if whole is None else (whole.shape[1:], whole.dtype.str))
    owners = communicator.gather(own)
    if owners is None:
        values = np.empty((len(own), *form[0]), form[1])
        communicator.swap({}, {0: values} if values.size else {})
        return values
    there = cast(Array, whole)
    communicator.swap({r: np.ascontiguousarray(there[o]) for r, o in enumerate(owners) if r and len(o)}, {})
    return np.ascontiguousarray(there[own])
