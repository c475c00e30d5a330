"""The multislice chain on a device: gradients by hpcrec's own kernels where they know it, all else by array code.

What both kernels know, windows of 128 pixels, the fused one takes: by the design's count of memory traffic it is the
faster one, with several modes too. Nobody has measured that yet.
"""

from __future__ import annotations

from hpcrec.backend.array import Array, BoolArray
from hpcrec.backend.cuda import Layout
from hpcrec.backend.launch import launch, resident_blocks
from hpcrec.models import fused, multislice, striped
from hpcrec.models.chain import Chain, ChainSums

chain_intensities = multislice.chain_intensities
add_responses = multislice.add_responses


def add_gradients(chain: Chain, patterns: Array, good: BoolArray | None, sums: ChainSums) -> None:
    """Add the gradients of ``patterns`` as :func:`hpcrec.models.multislice.add_gradients` does."""
    if fused.fault(chain, patterns, sums) is None:
        n_blocks = resident_blocks(Layout(chain.spectrum.shape[-1]).blocks)
        fused.add_gradients(chain, patterns, good, sums, launch, n_blocks)
    elif striped.fault(chain, patterns, sums) is None:
        striped.add_gradients(chain, patterns, good, sums, launch)
    else:
        multislice.add_gradients(chain, patterns, good, sums)
