"""The fused kernel's source compiled for the CPU, and gradients by it."""

import ctypes
import re

from kernel_chains import KERNELS, answer, compiled, empty_sums, in_single

from hpcrec.backend import cuda
from hpcrec.models import fused

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
    chain = in_single(chain)
    sums = empty_sums(chain, slopes=slopes)
    assert fused.fault(chain, patterns, sums) is None
    fused.add_gradients(chain, patterns, good, sums, kernels.launch, n_blocks, **more)
    return answer(chain, sums)


def on_a_device(monkeypatch, launched, kernels):
    """Let models on the stand-in for a GPU start these kernels; return the list of the names that they start."""
    names = []
    monkeypatch.setattr(launched, "launch", lambda *told: (names.append(told[0]), kernels.launch(*told)))
    monkeypatch.setattr(launched, "resident_blocks", lambda of_multiprocessor, shared: of_multiprocessor)
    monkeypatch.setattr(launched, "shared_room", lambda: 232448)
    return names
