"""Chains, counts and the plain answer that GPU kernels are compared with, and their sources compiled for the CPU."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcrec.backend.fft import fft2
from hpcrec.models import multislice
from hpcrec.models.chain import Chain, ChainSums, Detector
from hpcrec.objectives.losses import AMPLITUDE_FLOOR, ANSCOMBE_FLOOR, POISSON_FLOOR
from hpcrec.physics.propagation import fresnel_factor, propagation_rate, tilted_factor

# Sums in single precision, of the largest value
TOLERANCE = 1e-5
SAMPLING, WAVELENGTH = (0.2, 0.24), 0.0197
FLOORS = {"amplitude": AMPLITUDE_FLOOR, "anscombe": ANSCOMBE_FLOOR, "poisson": POISSON_FLOOR}
ORIGIN, N_PATTERNS = (2, 3), 3
HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "hpcrec" / "backend" / "kernels"


def compiled(source, kernels, folder, *more):
    """Return the shared library of a kernel's source and the threads' stand-in; ``more`` options of the compiler.

    Libraries are kept by what they were compiled from, as this takes up to half a minute; each user loads a copy, whose
    random order nobody else moves on.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed: the GPU kernel's source cannot be compiled for the CPU")
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", *more]
    read = [HERE / source, HERE / "emulated.h", *sorted(Path(kernels).glob("*.cuh"))]
    digest = hashlib.sha256("\n".join([compiler, *options, *(path.read_text("utf-8") for path in read)]).encode())
    kept = Path(tempfile.gettempdir()) / f"hpcrec-emulated-{os.getuid()}" / f"{digest.hexdigest()[:24]}.so"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as beside:
            made = Path(beside) / kept.name
            subprocess.run([compiler, *options, f"-I{kernels}", HERE / source, "-o", made], check=True)
            made.replace(kept)
    return ctypes.CDLL(shutil.copy(kept, Path(folder) / f"{digest.hexdigest()[:24]}.so"))


def object_shape(n):
    """Shape (y, x) of an object that windows of n pixels move about in; that of its gradient is 4 less."""
    return n + 22, n + 19


def gradient_shape(n):
    return tuple(side - 4 for side in object_shape(n))


def gaps(n, n_slices):
    """Propagators of gaps, the first two alike, the third tilted, band-limited."""
    whole = fresnel_factor((n, n), SAMPLING, WAVELENGTH, 12.0, 2 / 3)
    tilted = tilted_factor(propagation_rate((n, n), SAMPLING, WAVELENGTH), SAMPLING, 9.0, (0.03, -0.02), 2 / 3)
    chosen = [whole, whole, tilted, whole][: n_slices - 1]
    return np.array(chosen, np.complex64).reshape(-1, n, n)


def make_chain(n, n_slices, loss, seed, *, n_modes=1, shifted=False):
    """A chain in numbers that single precision holds, of a probe off the window's centre and an object that absorbs."""
    rng, shape = np.random.default_rng(seed), object_shape(n)
    y, x = (np.arange(n) - n // 2)[:, None] + 3, np.arange(n) - n // 2 - 5
    probe = 8 * np.exp(-(y**2 + 1.3 * x**2) / (2 * (n / 8) ** 2) + 0.01j * (y**2 + 0.7 * x**2 + x * y))
    # Further modes: weaker ones that change sign
    modes = np.stack([probe * (0.1 * x) ** m / (1 + m) for m in range(n_modes)]).astype(np.complex64).astype(complex)
    obj = np.exp(0.6j * rng.normal(size=(1, n_slices, *shape))) * rng.uniform(0.8, 1, (1, n_slices, *shape))
    corners = rng.integers(0, np.array(gradient_shape(n)) - n + 1, (N_PATTERNS, 1, 2)) + ORIGIN
    shifts = rng.uniform(-0.5, 0.5, (N_PATTERNS, 1, 2)) if shifted else np.zeros((N_PATTERNS, 1, 2))
    return Chain(
        obj=obj.astype(np.complex64).astype(complex),
        corners=corners,
        shifts=shifts,
        spectrum=fft2(modes) if shifted else modes,
        propagators=gaps(n, n_slices).astype(complex),
        rate=propagation_rate((n, n), SAMPLING, WAVELENGTH),
        detector=Detector(loss=loss),
        whole=not shifted,
    )


def make_counts(chain, dtype, seed):
    """Poisson counts of another object than the chain's; uint16 beyond what a byte holds."""
    rng = np.random.default_rng(seed)
    factor = 100.0 if dtype == np.uint16 else 1.0
    found = multislice.chain_intensities(chain)
    counts = rng.poisson(factor * found[:, ::-1]) if factor > 1 else rng.poisson(0.7 * found[:, ::-1] + 0.05)
    assert counts.max() > (255 if dtype == np.uint16 else 1)
    return np.minimum(counts, np.iinfo(dtype).max).astype(dtype)


def dimmed(chain):
    """The chain of a probe of so few electrons that most pixels count none."""
    return replace(chain, spectrum=(0.17 * chain.spectrum).astype(np.complex64).astype(complex))


def make_sparse_counts(chain, seed):
    """Counts of a dim probe: of the second pattern none, of the others many on one pixel."""
    counts = np.random.default_rng(seed).poisson(multislice.chain_intensities(chain)[:, ::-1])
    assert np.mean(counts > 0) < 0.5
    n = counts.shape[-1]
    counts[1] = 0
    counts[0, 3, n - 5], counts[2, n - 1, n // 2] = 700, 300
    return counts.astype(np.uint16)


def make_good(masks, n):
    return None if masks == 0 else np.random.default_rng(3).random((masks, n, n)) > 0.1


def in_single(chain):
    """The chain in the precision of the kernels."""
    single = {name: getattr(chain, name).astype(np.complex64) for name in ("obj", "spectrum", "propagators")}
    return replace(chain, **single)


def empty_sums(chain, *, slopes=True):
    """Sums for a chain, in its precision; ``slopes``: those of shifts too."""
    shape = (*chain.obj.shape[:2], *gradient_shape(chain.spectrum.shape[-1]))
    return ChainSums(
        origin=ORIGIN,
        obj=np.zeros(shape, chain.obj.dtype),
        illumination=np.zeros(shape, chain.obj.real.dtype),
        totals=np.zeros(3),
        spectrum=np.zeros_like(chain.spectrum),
        shifts=np.zeros((N_PATTERNS, 1, 2)) if slopes and not chain.whole else None,
    )


def answer(chain, sums):
    """Gradients of object and probe (in space, modes first), illumination, totals, slopes of shifts."""
    probe = sums.spectrum if chain.whole else np.fft.ifft2(sums.spectrum, norm="ortho")
    found = {"obj": sums.obj[0], "illumination": sums.illumination[0], "probe": probe, "totals": sums.totals}
    return found if sums.shifts is None else found | {"shifts": sums.shifts}


def plain(chain, patterns, good):
    """The answer of the plain chain."""
    sums = empty_sums(chain)
    multislice.add_gradients(chain, patterns, good, sums)
    return answer(chain, sums)


def errors(wanted, found):
    """The largest errors of the gradients over their largest values, and those of the totals."""
    result = dict(zip(("loss", "error", "counts"), np.abs(found["totals"] / wanted["totals"] - 1)))
    for name in wanted.keys() - {"totals"}:
        scale = np.abs(wanted[name]).max()
        assert scale > 0
        result[name] = np.abs(found[name] - wanted[name]).max() / scale
    return result
