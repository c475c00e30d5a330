"""The multislice chain on a device: gradients by hpcrec's own kernels where they know it, all else by array code.

What both kernels know, windows of 128 pixels, the fused one takes: by the design's count of memory traffic it is the
faster one, with several modes too. Nobody has measured that yet.
"""

from __future__ import annotations

from typing import Literal

from hpcrec.backend import stripes
from hpcrec.backend.array import Array, BoolArray
from hpcrec.backend.cuda import SIZES, Layout, gaps_of
from hpcrec.backend.launch import launch, resident_blocks, shared_room
from hpcrec.models import fused, multislice, striped
from hpcrec.models.chain import Chain, ChainSums
from hpcrec.models.events import Events, dense

Family = Literal["fused", "striped", "array"]

chain_intensities = multislice.chain_intensities
add_responses = multislice.add_responses


def family(chain: Chain, patterns: Array | Events, sums: ChainSums) -> Family:
    """Return which code takes a chain, its patterns and what is wanted of them."""
    if fused.fault(chain, patterns, sums) is None and _shared(chain) <= shared_room():
        return "fused"
    return "striped" if striped.fault(chain, patterns, sums) is None else "array"


def prefers_events(window: tuple[int, int]) -> bool:
    """Whether windows go to kernels that read electrons' places as they are."""
    return window[0] == window[1] and window[0] in {*SIZES, *stripes.SIZES}


def add_gradients(
    chain: Chain, patterns: Array | Events, good: BoolArray | None, sums: ChainSums, *, deterministic: bool = False
) -> None:
    """Add the gradients of ``patterns`` as :func:`hpcrec.models.multislice.add_gradients` does.

    ``deterministic`` : the same to the last bit from run to run. Events become arrays for array code alone.
    """
    match family(chain, patterns, sums):
        case "fused":
            n_blocks = resident_blocks(Layout(chain.spectrum.shape[-1]).blocks, _shared(chain))
            room = min(chain.room, fused.ROOM_BYTES)
            fused.add_gradients(chain, patterns, good, sums, launch, n_blocks, room, deterministic=deterministic)
        case "striped":
            room = min(chain.room, striped.CHUNK_BYTES)
            striped.add_gradients(chain, patterns, good, sums, launch, room, deterministic=deterministic)
        case "array":
            multislice.add_gradients(chain, dense(patterns), good, sums)


def _shared(chain: Chain) -> int:
    """Return the bytes of shared memory that a block of the fused kernel takes."""
    return Layout(chain.spectrum.shape[-1]).shared_bytes(len(gaps_of(chain.propagators).factors))
