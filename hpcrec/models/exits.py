"""Exit waves on the host, by the compiled kernels: the same as the plain functions of :mod:`hpcrec.models.waves`."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray
from hpcrec.backend.kernels import exits as kernels
from hpcrec.backend.kernels.transforms import Plan
from hpcrec.backend.threads import Threads
from hpcrec.models import compiled
from hpcrec.models.chain import Chain, part_of
from hpcrec.objectives.losses import AMPLITUDE_FLOOR


def exit_waves(chain: Chain, threads: Threads) -> ComplexArray:
    """Return the modelled exit waves (n, part, y, x)."""
    ny, nx = chain.spectrum.shape[1:]
    out = np.empty((len(chain.corners), chain.n_parts, ny, nx), np.complex64)

    def run(share: slice) -> None:
        part = part_of(chain, share)
        kernels.exit_waves(*_waves(part), *_rooms(part, 1), _flat(out[share]))

    threads.run([partial(run, share) for share in threads.shares(len(out))])
    return out


def step(
    chain: Chain,
    patterns: Array,
    good: BoolArray | None,
    waves: ComplexArray,
    numbers: tuple[float, float, float],
    noise_share: float,
    threads: Threads,
) -> ComplexArray:
    """Return the waves (n, part, y, x) after one step; arguments as :func:`hpcrec.models.waves.stepped_waves`."""
    out = np.empty(waves.shape, np.complex64)
    chosen = tuple(np.float32(number) for number in numbers)

    def run(share: slice) -> None:
        part, seen = part_of(chain, share), good if good is None or len(good) == 1 else good[share]
        counts, rows, kind, masks, loss, _, *rest = compiled.detector_of(
            part, patterns[share], np.arange(len(part.corners)), seen
        )
        # Moduli are scaled with the floor of the amplitude loss, whatever is reported
        detector = counts, rows, kind, masks, loss, np.float32(AMPLITUDE_FLOOR), *rest
        rooms = _rooms(part, 2 * part.n_parts + 3)
        old = _flat(waves[share])
        kernels.step(*_waves(part), detector, chosen, np.float32(noise_share), old, *rooms, _flat(out[share]))

    threads.run([partial(run, share) for share in threads.shares(len(waves))])
    return out


def overlap_object(
    chain: Chain, waves: ComplexArray, origin: tuple[int, int], found: ComplexArray, weight: FloatArray
) -> None:
    """Add to ``found`` and ``weight`` (state, 1, y, x), from pixel ``origin`` of the object."""
    arrays = found.view(np.float32), weight
    kernels.overlap_object(*_waves(chain), np.array(origin), _flat(waves), *_rooms(chain, 2), *arrays)


def overlap_probe(chain: Chain, waves: ComplexArray, found: ComplexArray) -> None:
    """Add to ``found`` (mode, ky, kx)."""
    kernels.overlap_probe(*_waves(chain), _flat(waves), *_rooms(chain, 2), _flat(found[None])[0])


def _waves(chain: Chain) -> tuple[Plan, tuple[object, ...]]:
    return compiled.plan_of(chain, threading.get_ident()), compiled.waves_of(chain)


def _rooms(chain: Chain, n: int) -> tuple[FloatArray, FloatArray]:
    """Return room for n waves, and for a mode."""
    room = compiled.wave_room(chain, n + 1)
    return room[:n], room[n]


def _flat(waves: ComplexArray) -> FloatArray:
    """Return waves (n, part, y, x) as (n, part, 2·ny·nx) float32, the same memory if they are complex64."""
    n, n_parts, ny, nx = waves.shape
    return np.ascontiguousarray(waves, np.complex64).reshape(n, n_parts, ny * nx).view(np.float32)
