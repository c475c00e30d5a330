"""The projector's GPU kernels on the CPU, started by their C++ names, for tests of all that is built on them."""

import ctypes
import re

from kernel_chains import KERNELS, compiled

from hpcrec.backend import projector


def emulated(folder, kernels=KERNELS):
    """Compile the sources in ``kernels`` to a library in ``folder``."""
    return EmulatedKernels(compiled("projector_host.cpp", kernels, folder))


class EmulatedKernels:
    """Kernels of a shared library; ``launches`` are the names of those that were started."""

    def __init__(self, library):
        self.library = library
        self.launches = []

    def launch(self, name, blocks, threads, shared, arguments):
        self.launches.append(name)
        kernel, flags = re.fullmatch(r"tomography_(\w+)<(.*)>", name).groups()
        values = [{"true": 1, "false": 0}.get(word) for word in flags.split(", ")]
        address = ctypes.c_void_p(arguments.ctypes.data)
        if kernel == "turn":
            assert (threads, shared, arguments.dtype) == (256, 4 * 32 * 33, projector.TURN)
            self.library.run_turn(address, values[0], *blocks)
        elif kernel == "step":
            assert (threads, shared, arguments.dtype, blocks[1]) == (256, 0, projector.STEP, 1)
            self.library.run_step(address, values[0], blocks[0])
        else:
            assert arguments.dtype == projector.ARGUMENTS
            back, rows = kernel.startswith("back"), kernel.endswith("rows")
            assert (threads, shared) == ((128, 4 * 4 * 36 * 33) if kernel == "project_any" else (256, 0))
            moment = 0 if back else values[1]
            bins = 0 if rows else values[-1]
            assert len(values) == 1 + (not back) + (not rows)
            self.library.run_projector(address, int(flags[0]), back, rows, moment, bins, *blocks)
