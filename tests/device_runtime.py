"""The rest of the stand-in for CuPy: GPUs, streams that lag behind, pinned memory, a pool with a limit.

A stream does its work at the latest possible moment: when somebody waits for it, or for an event behind it. What is
read too early is then still the old, and what is overwritten too early is wrong for good. The current stream alone does
everything at once.
"""

import threading
from types import ModuleType, SimpleNamespace

import device_arrays
import numpy as np


class CUDARuntimeError(RuntimeError):
    """As CuPy has it."""


class OutOfMemoryError(MemoryError):
    """As CuPy has it."""


class Event:
    """A mark in a stream."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._stream, self._mark = None, 0

    def record(self, stream=None):
        """Stand behind what the stream has been given."""
        self._stream = stream or current()
        self._mark = self._stream.given

    def synchronize(self):
        """Wait."""
        if self._stream is not None:
            self._stream.work(self._mark)


class Stream:
    """Work that waits; of the current stream none does."""

    ptr = 0

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self._waiting, self.given, self.done = [], 0, 0

    def add(self, work):
        """Take work."""
        self._waiting.append(work)
        self.given += 1
        if self is current():
            self.work(self.given)

    def work(self, mark):
        """Do what was given until then."""
        while self.done < mark:
            self.done += 1
            self._waiting.pop(0)()

    def wait_event(self, event):
        """Let no later work begin before the event."""
        stream, mark = event._stream, event._mark
        if stream is not None:
            self.add(lambda: stream.work(mark))

    def record(self, event=None):
        """Return an event behind all work."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self):
        """Wait for all work."""
        self.work(self.given)


class _Currents(threading.local):
    """Ranks that are threads have streams of their own, as processes have."""

    def __init__(self):
        self.stream = Stream()


_CURRENTS = _Currents()


def current(device_id=-1):
    """Return the stream that work goes to."""
    return _CURRENTS.stream


class Pool:
    """A pool whose limit nobody keeps; tests that want it full say so."""

    def __init__(self):
        self.limit, self.freed = 0, 0

    def set_limit(self, size=None, fraction=None):
        """Remember."""
        self.limit = size

    def get_limit(self):
        """Return what was set."""
        return self.limit

    def free_all_blocks(self):
        """Count."""
        self.freed += 1


def with_runtime(n_devices=2, free=30 << 30):
    """Return a module like the stand-in's with GPUs of 40 GiB, ``free`` bytes of each being free."""
    module = ModuleType("cupy")
    module.__dict__.update({k: v for k, v in device_arrays.MODULE.__dict__.items() if not k.startswith("__")})
    used, pool = [], Pool()

    class Device:
        """A GPU by its number."""

        def __init__(self, number=None):
            self.id = number if number is not None else (used[-1] if used else 0)

        def use(self):
            """Make it current."""
            used.append(self.id)

    properties = {"name": b"Pretended", "totalGlobalMem": 40 << 30, "major": 9, "minor": 0, "multiProcessorCount": 2}
    properties |= {"sharedMemPerBlockOptin": 232448, "sharedMemPerMultiprocessor": 233472}
    module.cuda = SimpleNamespace(
        Device=Device,
        Stream=Stream,
        Event=Event,
        get_current_stream=current,
        alloc_pinned_memory=lambda size: np.full(size, 0xA5, np.uint8).data,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: n_devices,
            getDeviceProperties=lambda number: properties,
            deviceGetPCIBusId=lambda number: f"0000:{number + 1:02X}:00.0",
            memGetInfo=lambda: (free, 40 << 30),
        ),
    )
    module.get_default_memory_pool = lambda: pool
    plans = SimpleNamespace(set_size=lambda size: setattr(module, "plans", size))
    module.fft = ModuleType("cupy.fft")
    module.fft.__dict__.update(device_arrays.MODULE.fft.__dict__)
    module.fft.config = SimpleNamespace(get_plan_cache=lambda: plans)
    module.used, module.pool = used, pool
    return module
