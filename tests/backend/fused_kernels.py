"""The fused kernel's source compiled for the CPU, and gradients by it."""

import ctypes
import dataclasses
import re

import numpy as np
from kernel_chains import KERNELS, N_PATTERNS, ORIGIN, compiled, gradient_shape

from hpcrec.backend import cuda
from hpcrec.models import fused
from hpcrec.models.chain import ChainSums

N_BLOCKS = 2


class FusedKernels:
    """Variants by their C++ names: ``names`` are compiled at once, others each for itself when it is launched."""

    def __init__(self, folder, names=(), kernels=KERNELS):
        self._folder, self._kernels, self._libraries = folder, kernels, {}
        self.any = self._add(names)
        self._seed = 1

    def _add(self, names):
        variants = [re.fullmatch(r"add_gradients<(.*)>", name)[1] for name in names]
        told = " ".join(f"V({variant})" for variant in variants)
        library = compiled("fused_host.cpp", self._kernels, self._folder, f"-DVARIANTS={told}")
        return self._libraries.update(dict.fromkeys(variants, library)) or library

    def begin_order(self, seed):
        """Let threads and blocks run in another order."""
        self._seed = seed
        for library in set(self._libraries.values()):
            library.begin_order(seed)

    def launch(self, name, blocks, threads, shared, arguments):
        """Start a kernel, as ``hpcrec.backend.launch`` does."""
        variant = re.fullmatch(r"add_gradients<(.*)>", name)[1]
        n = int(variant.partition(",")[0])
        assert threads == cuda.Layout(n).threads
        assert shared == self.any.shared_bytes(n, int(arguments["n_factors"]))
        if variant not in self._libraries:
            self._add([name]).begin_order(self._seed)
        argument = ctypes.c_void_p(arguments.ctypes.data)
        assert self._libraries[variant].add_gradients(variant.encode(), argument, blocks[0]) == 0


def emulated(kernels, chain, patterns, good, *, slopes=True, n_blocks=N_BLOCKS, **more):
    """Gradients of a chain in double precision, rounded to single, by the kernels."""
    single = {name: getattr(chain, name).astype(np.complex64) for name in ("obj", "spectrum", "propagators")}
    chain, shape = dataclasses.replace(chain, **single), (*chain.obj.shape[:2], *gradient_shape(patterns.shape[-1]))
    sums = ChainSums(
        origin=ORIGIN,
        obj=np.zeros(shape, np.complex64),
        illumination=np.zeros(shape, np.float32),
        totals=np.zeros(3),
        spectrum=np.zeros_like(chain.spectrum),
        shifts=np.zeros((N_PATTERNS, 1, 2)) if slopes and not chain.whole else None,
    )
    assert fused.fault(chain, patterns, sums) is None
    fused.add_gradients(chain, patterns, good, sums, kernels.launch, n_blocks, **more)
    probe = sums.spectrum if chain.whole else np.fft.ifft2(sums.spectrum, norm="ortho")
    found = {"obj": sums.obj[0], "illumination": sums.illumination[0], "probe": probe, "totals": sums.totals}
    return found if sums.shifts is None else found | {"shifts": sums.shifts}


def on_a_device(monkeypatch, launched, kernels):
    """Let models on the stand-in for a GPU start these kernels; return the list of the names that they start."""
    names = []
    monkeypatch.setattr(launched, "launch", lambda *told: (names.append(told[0]), kernels.launch(*told)))
    monkeypatch.setattr(launched, "resident_blocks", lambda of_multiprocessor, shared: of_multiprocessor)
    monkeypatch.setattr(launched, "shared_room", lambda: 232448)
    return names
