"""A process that sees two pretended GPUs, whose kernels its CPU runs; for workers of a cluster."""

import ctypes
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "backend")]

USED = []
"""Which GPU was made current for which thread."""
LIMITS = []


def pretend(library, n_gpus=2):
    """Install the stand-in for CuPy with ``n_gpus`` GPUs of 40 GiB, and the emulated kernels at ``library``."""
    import device_arrays
    from emulated_projector import EmulatedKernels

    from hpcrec.backend import projector

    module = device_arrays.MODULE
    module.cuda = SimpleNamespace(
        Device=lambda number: SimpleNamespace(use=lambda: USED.append((number, threading.get_ident()))),
        runtime=SimpleNamespace(
            getDeviceCount=lambda: n_gpus, memGetInfo=lambda: (40 << 30, 40 << 30), CUDARuntimeError=RuntimeError
        ),
    )
    module.get_default_memory_pool = lambda: SimpleNamespace(
        set_limit=lambda size: LIMITS.append(size), free_all_blocks=lambda: None
    )
    module.fft.config = SimpleNamespace(get_plan_cache=lambda: SimpleNamespace(set_size=lambda size: None))
    sys.modules["cupy"] = module
    projector.launch = EmulatedKernels(ctypes.CDLL(library)).launch


def forget():
    """Undo it, as far as a process of tests needs."""
    sys.modules.pop("cupy", None)
    USED.clear()
    LIMITS.clear()


def used(_=None):
    """Return the GPUs that were made current, in how many threads, the limits, and whether this thread is one."""
    threads = {thread for _, thread in USED}
    return [number for number, _ in USED], len(threads), LIMITS, threading.get_ident() in threads
