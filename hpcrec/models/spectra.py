"""Spectra of probes and back, in every batch: by the compiled transforms, several times faster than FFTW's plans."""

from __future__ import annotations

import math
import threading

import numpy as np

from hpcrec.backend.array import ComplexArray, array_module
from hpcrec.backend.fft import aligned_empty, fft2, ifft2
from hpcrec.backend.kernels.transforms import known_size, transform, transform_plan


def spectra_of(waves: ComplexArray) -> ComplexArray:
    """Return the unitary spectra of waves (…, ny, nx), as :func:`hpcrec.backend.fft.fft2`."""
    return _transformed(waves, True) if _known(waves) else fft2(waves)


def waves_of(spectra: ComplexArray) -> ComplexArray:
    """Return the waves of spectra (…, ny, nx), as :func:`hpcrec.backend.fft.ifft2`."""
    return _transformed(spectra, False) if _known(spectra) else ifft2(spectra)


def _known(a: ComplexArray) -> bool:
    """Whether the compiled transforms can do it: in host memory, single precision, sizes of small radices."""
    return array_module(a) is np and a.dtype == np.complex64 and all(known_size(n) for n in a.shape[-2:])


def _transformed(a: ComplexArray, forward: bool) -> ComplexArray:
    ny, nx = a.shape[-2:]
    out: ComplexArray = aligned_empty(a.shape, np.complex64)
    np.multiply(a, np.float32(1 / math.sqrt(ny * nx)), out=out)
    plan = transform_plan(ny, nx, threading.get_ident())
    for wave in out.view(np.float32).reshape(-1, 2 * ny * nx):
        transform(plan, wave, forward)
    return out
