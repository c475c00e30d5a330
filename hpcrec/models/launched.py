"""The multislice chain on a device: gradients by hpcrec's own kernels where they know it, all else by array code."""

from __future__ import annotations

from typing import cast

from hpcrec.backend.array import Array, BoolArray
from hpcrec.backend.cuda import Layout
from hpcrec.backend.launch import launch, resident_blocks
from hpcrec.models import fused, multislice, striped
from hpcrec.models.chain import Chain, ChainSums
from hpcrec.models.events import Events, dense

chain_intensities = multislice.chain_intensities
add_responses = multislice.add_responses


def add_gradients(
    chain: Chain, patterns: Array | Events, good: BoolArray | None, sums: ChainSums, *, deterministic: bool = False
) -> None:
    """Add the gradients of ``patterns`` as :func:`hpcrec.models.multislice.add_gradients` does.

    ``deterministic`` : the same to the last bit from run to run; not by the fused kernel, whose sums on the object
    depend on the order of its blocks. Events become arrays but for the striped kernels.
    """
    # Of patterns a fault is a matter of their type, which events have too
    if not deterministic and fused.fault(chain, cast(Array, patterns), sums) is None:
        n_blocks = resident_blocks(Layout(chain.spectrum.shape[-1]).blocks)
        fused.add_gradients(chain, dense(patterns), good, sums, launch, n_blocks)
    elif striped.fault(chain, patterns, sums) is None:
        striped.add_gradients(chain, patterns, good, sums, launch, deterministic=deterministic)
    else:
        multislice.add_gradients(chain, dense(patterns), good, sums)
