"""A batch's gradient where only its windows count: no pass over the box around them, which may be the whole object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray, array_module, real_dtype
from hpcrec.backend.kernels import runs
from hpcrec.backend.kernels.windows import peak_of_windows, step_windows
from hpcrec.backend.threads import Threads
from hpcrec.objectives.constraints import CONSTRAINTS

Bound = Literal["none", "amplitude_bound", "phase_only"]
BOUNDS: Final[dict[str, int]] = {"none": 0, "amplitude_bound": 1, "phase_only": 2}


@dataclass(frozen=True, slots=True)
class WindowSums:
    """Gradient and illumination of a batch in buffers on the whole of a state's box, zero outside of the windows.

    corners : (n, 2) first pixels of the windows (ny, nx), in ascending order of x
    obj : (thread, slice, y, x) ∂L/∂O*, illumination : (thread, slice, y, x) Σ|ψ_s|²: to be added over the threads

    Lent by the model until the next batch: who takes the sums must take a step at last, which clears them. Steps change
    an object (slice, y, x) in place; their formulas are in :mod:`hpcrec.backend.kernels.runs`.
    """

    corners: IntArray
    window: tuple[int, int]
    obj: ComplexArray
    illumination: FloatArray
    threads: Threads

    def peak(self) -> float:
        """Return the largest illumination of a pixel."""
        return float(peak_of_windows(self.illumination, self.corners, self.window, (0, self.obj.shape[2])))

    def step(
        self,
        obj: ComplexArray,
        *,
        share: float,
        floor: float,
        scale: float,
        quadratic: bool = False,
        dark: float = 0.0,
        velocity: ComplexArray | None = None,
        momentum: float = 0.0,
        bound: Bound = "none",
    ) -> None:
        """Change an object (slice, y, x) in place where its illumination exceeds ``dark``.

        As :func:`hpcrec.backend.kernels.updates.precondition`, with ``velocity`` then ``step_with_momentum``, and the
        constraint ``bound`` of :data:`hpcrec.objectives.constraints.CONSTRAINTS`.
        """
        real = real_dtype(obj.dtype)
        numbers = tuple(real.type(number) for number in (share, floor, scale, momentum, dark))
        moving = np.zeros((0, 1, 2), real) if velocity is None else velocity.view(real)
        arrays = obj.view(real), moving, self.obj.view(real), self.illumination, self.corners, self.window
        self.threads.run(
            [
                partial(step_windows, *arrays, (rows.start, rows.stop), numbers, quadratic, BOUNDS[bound])
                for rows in self.threads.shares(obj.shape[1])
            ]
        )

    def divide(self, *, floor: float, dark: float) -> ComplexArray:
        """Make the gradient g the direction D = −g / √(W² + floor²), zero on dark pixels; return it (slice, y, x)."""
        self._run(runs.divide, (), (), (-1.0, floor, dark))
        direction: ComplexArray = self.obj[0]
        return direction

    def follow(
        self,
        obj: ComplexArray,
        velocity: ComplexArray | None,
        *,
        step: float,
        momentum: float,
        dark: float,
        bound: Bound,
    ) -> None:
        """Move along the direction that :meth:`divide` made: v ← step · D + momentum · v, O ← O + v."""
        moving = np.zeros((0, 1, 1), obj.dtype) if velocity is None else velocity
        self._run(runs.follow, (obj, moving), (), (step, momentum, dark), BOUNDS[bound])

    def adam(
        self,
        obj: ComplexArray,
        velocity: ComplexArray,
        square: FloatArray,
        *,
        numbers: tuple[float, ...],
        bound: Bound,
    ) -> None:
        """Take a step of Adam; ``numbers`` as the kernel has them."""
        real = square.dtype.type
        self._run(runs.adam, (obj, velocity), (square,), (tuple(real(n) for n in numbers),), BOUNDS[bound])

    def weigh_by_root(self, obj: ComplexArray, *, peak: float, floor: float, step: float, bound: Bound) -> None:
        """Take a step of PIE: O ← O − step · √min(W/peak, 1) g / (W + floor)."""
        self._run(runs.weigh_by_root, (obj,), (), (peak, floor, step), BOUNDS[bound])

    def collect(self, obj: ComplexArray, waves: ComplexArray, total: FloatArray, *, share: float) -> None:
        """Add W O − share · g to ``waves`` and W to ``total`` (slice, y, x); the sums stay for a step."""
        self._run(runs.collect, (obj, waves), (total,), (share,))

    def _run(
        self, kernel: Any, moving: tuple[Array, ...], more: tuple[Array, ...], numbers: tuple[Any, ...], *last: int
    ) -> None:
        """Run a kernel on complex and real arrays, the summed gradient and weight, the runs, numbers."""
        real = self.illumination.dtype
        gradient, arrays = self.obj.view(real), (*(a.view(real) for a in moving), *more)
        numbers = tuple(n if isinstance(n, tuple) else real.type(n) for n in numbers)
        found = runs.find_runs(self.corners, self.window, self.obj.shape[2])
        calls = []
        for share in self.threads.shares(len(found)):
            calls.append(
                partial(_add_and_run, kernel, arrays, gradient, self.illumination, found[share], numbers, last)
            )
        self.threads.run(calls)


def _add_and_run(
    kernel: Any,
    arrays: tuple[Array, ...],
    gradient: FloatArray,
    weight: FloatArray,
    found: IntArray,
    numbers: tuple[Any, ...],
    last: tuple[int, ...],
) -> None:
    if len(weight) > 1:
        runs.add_threads(gradient, weight, found)
    kernel(*arrays, gradient[0], weight[0], found, *numbers, *last)


def kick(
    obj: ComplexArray,
    velocity: ComplexArray,
    before: ComplexArray,
    *,
    momentum: float,
    share: float,
    bound: Bound,
    threads: Threads,
) -> None:
    """Let contiguous arrays of one shape follow v ← momentum · v + O − B, O ← O + share · v, B ← O, all in place.

    The constraint ``bound`` acts where v is not zero. Compiled on the host, plain on a device.
    """
    if array_module(obj) is not np:
        plain_kick(obj, velocity, before, momentum=momentum, share=share, bound=bound)
        return
    if not all(a.flags.c_contiguous for a in (obj, velocity, before)):
        raise ValueError("a kick needs contiguous arrays, row by row: it would change copies of these")
    real = real_dtype(obj.dtype)
    flat = [a.reshape(-1).view(real) for a in (obj, velocity, before)]
    numbers = real.type(momentum), real.type(share), BOUNDS[bound]
    parts = [slice(2 * s.start, 2 * s.stop) for s in threads.shares(obj.size)]
    threads.run([partial(runs.kick, *(a[part] for a in flat), *numbers) for part in parts])


def plain_kick(
    obj: ComplexArray, velocity: ComplexArray, before: ComplexArray, *, momentum: float, share: float, bound: Bound
) -> None:
    """Do the same as :func:`kick`, in one thread; arrays may live on a device."""
    velocity *= momentum
    velocity += obj - before
    obj += share * velocity
    if bound != "none":
        obj[...] = array_module(obj).where(velocity != 0, CONSTRAINTS[bound](obj), obj)
    before[...] = obj
