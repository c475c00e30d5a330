"""CuPy's stand-in and emulated kernels in place of a GPU: every line of the benchmark runs before one is at hand.

It needs g++ and the folder ``tests``; what it times means nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_TESTS = Path(__file__).resolve().parents[2] / "tests"
# Blocks that the emulated launches take at a time
_MULTIPROCESSORS = 2
_PROPERTIES = {
    "name": b"no GPU", "totalGlobalMem": 1 << 30, "major": 9, "minor": 0, "multiProcessorCount": _MULTIPROCESSORS,
    "sharedMemPerBlockOptin": 227 << 10, "sharedMemPerMultiprocessor": 228 << 10, "reservedSharedMemPerBlock": 1 << 10,
}  # fmt: skip


def pretended_cupy() -> Any:
    """Return the stand-in for CuPy with what the benchmark and hpcrec's launches ask for beside arrays."""
    for folder in (_TESTS, _TESTS / "backend"):
        sys.path.insert(0, str(folder))
    arrays, cupy = import_module("device_arrays"), import_module("device_runtime").with_runtime(n_devices=1)
    emulation = _Emulation(Path(tempfile.mkdtemp(prefix="hpcrec-rehearsal-")))
    cupy.RawModule = lambda **asked: _Module(emulation, **asked)
    pool = SimpleNamespace(set_limit=lambda size: None, free_all_blocks=lambda: None)
    cupy.get_default_memory_pool = lambda: pool
    vars(cupy.cuda).update(
        Device=_Device,
        get_elapsed_time=lambda start, end: 0.0,
        set_allocator=lambda allocator: None,
        cufft=SimpleNamespace(CUFFT_FORWARD=-1, CUFFT_INVERSE=1),
    )
    cupy.cuda.runtime.getDeviceProperties = lambda number: dict(_PROPERTIES)
    profiler, fftpack = ModuleType("cupyx.profiler"), ModuleType("cupyx.scipy.fftpack")
    profiler.benchmark, fftpack.get_fft_plan = _benchmark, _Plan  # type: ignore[attr-defined]
    sys.modules.update({"cupy": cupy, "cupyx.profiler": profiler, "cupyx.scipy.fftpack": fftpack})
    if hasattr(arrays, "TRANSFORMS"):
        sys.modules["cupyx.scipy.fft"] = arrays.TRANSFORMS
    return cupy


class _Device:
    """The only device."""

    id = 0

    def __init__(self, number: int = 0) -> None:
        assert number == 0

    def use(self) -> None:
        """Be current."""

    def synchronize(self) -> None:
        """Nothing is under way."""


def _benchmark(func: Callable[[], object], *, n_repeat: int, n_warmup: int, max_duration: float, name: str) -> Any:
    for _ in range(n_warmup + n_repeat):
        func()
    return SimpleNamespace(gpu_times=np.zeros((1, n_repeat)))


class _Plan:
    """Transforms as cuFFT does them: in place if asked, not normalised."""

    def __init__(self, a: Any, axes: tuple[int, ...]) -> None:
        self._shape, self._axes = a.shape, axes

    def fft(self, a: Any, out: Any, direction: int) -> None:
        """Transform."""
        assert a.shape == out.shape == self._shape
        forward = direction == -1
        out._host[...] = (np.fft.fftn if forward else np.fft.ifftn)(
            a._host, axes=self._axes, norm="backward" if forward else "forward"
        )


class _Module:
    """A module of kernels: hpcrec's own by their emulation, those of ``passes.cu`` by plain functions."""

    def __init__(
        self,
        emulated: Callable[..., None],
        *,
        code: str,
        options: tuple[str, ...],
        name_expressions: tuple[str, ...] = (),
    ) -> None:
        assert isinstance(options, tuple)
        self._code, self._emulated, self._names = code, emulated, tuple(name_expressions)

    def get_function(self, name: str) -> _Kernel:
        """Return a kernel."""
        if self._names:
            assert name in self._names
            return _Kernel(lambda grid, block, args, shared: self._emulated(name, grid, block[0], shared, *args))
        assert f" {name}(" in self._code
        work = globals()[f"_{name}"]
        return _Kernel(lambda grid, block, args, shared: work(*map(_as_numpy, args), blocks=grid))


class _Kernel:
    """A kernel that a call starts."""

    def __init__(self, work: Callable[..., None]) -> None:
        self._work, self.max_dynamic_shared_size_bytes = work, 48 << 10

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        assert isinstance(grid, tuple)
        assert isinstance(block, tuple)
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self._work(grid, block, args, shared_mem)


class _Emulation:
    """hpcrec's kernels by their C++ names, compiled for the processor as in their tests, when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = (
            folder,
            {"add_gradients": _fused, "stripe_": _stripes, "window_": _windows_of_objects},
        )
        self._launches: dict[str, Callable[..., None]] = {}

    def __call__(self, name: str, *told: Any) -> None:
        sign = next(sign for sign in self._made if name.startswith(sign))
        if sign not in self._launches:
            folder = self._folder / sign
            folder.mkdir()
            self._launches[sign] = self._made[sign](folder)
        self._launches[sign](name, *told)


def _library(source: str, folder: Path) -> Any:
    chains = import_module("kernel_chains")
    return chains.compiled(source, chains.KERNELS, folder)


def _fused(folder: Path) -> Any:
    return import_module("fused_kernels").FusedKernels(folder).launch


def _stripes(folder: Path) -> Any:
    return import_module("test_stripes_emulation").launcher(_library("stripes_host.cpp", folder))


def _windows_of_objects(folder: Path) -> Any:
    return import_module("test_window_kernels").launcher(_library("windows_host.cpp", folder))


def _as_numpy(value: Any) -> Any:
    return value._host if hasattr(value, "_host") else value


# ---- what the kernels of passes.cu do, for all patterns of a launch at once


def _windows(corners: Any, n: int) -> tuple[Any, Any]:
    along = np.arange(n)
    return corners[:, 0, None, None] + along[:, None], corners[:, 1, None, None] + along


def _by_pattern(waves: Any, modes: int, held: int) -> Any:
    return waves.reshape(-1, modes, *waves.shape[-2:])[:held]


def _enter(waves, probe, obj, corners, n, modes, width, *, blocks):  # type: ignore[no-untyped-def]
    assert width == obj.shape[1]
    _by_pattern(waves, modes, blocks[1])[...] = probe * obj[_windows(corners, n)][:, None]


def _filter(waves, factor, n, modes, conjugate, *, blocks):  # type: ignore[no-untyped-def]
    _by_pattern(waves, modes, blocks[1])[...] *= (factor.conj() if conjugate else factor) / n**2


def _transmit(waves, saved, obj, corners, n, modes, width, *, blocks):  # type: ignore[no-untyped-def]
    held = _by_pattern(waves, modes, blocks[1])
    _by_pattern(saved, modes, blocks[1])[...] = held
    held *= obj[_windows(corners, n)][:, None]


def _weigh(waves, counts, loss, n, modes, floor, *, blocks):  # type: ignore[no-untyped-def]
    held = _by_pattern(waves, modes, blocks[1])
    root, wanted = np.sqrt((np.abs(held) ** 2).sum(axis=1) / n**2 + floor), np.sqrt(counts + floor)
    loss += ((root - wanted) ** 2).sum()
    held *= ((1 - wanted / root) / n**2)[:, None]


def _leave(waves, saved, step, obj, gradient, illumination, corners, n, modes, width, *, blocks):  # type: ignore[no-untyped-def]
    held = _by_pattern(waves, modes, blocks[1])
    psi = _by_pattern(saved, modes, blocks[1]) if step else saved.reshape(1, modes, n, n)
    places = _windows(corners, n)
    np.add.at(gradient, places, (held * psi.conj()).sum(axis=1))
    np.add.at(illumination, places, np.broadcast_to((np.abs(psi) ** 2).sum(axis=1), places[0].shape[:1] + (n, n)))
    held *= obj[places].conj()[:, None]


def _gather(waves, gradient, n, modes, copies, *, blocks):  # type: ignore[no-untyped-def]
    for i, wave in enumerate(_by_pattern(waves, modes, blocks[1])):
        gradient[i % copies] += wave


def _add_patches(sums, corners, n, width, *, blocks):  # type: ignore[no-untyped-def]
    assert (width, len(corners)) == (sums.shape[1], blocks[0])
    np.add.at(sums, _windows(corners, n), 1 + 1j)
