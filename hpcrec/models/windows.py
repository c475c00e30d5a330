"""A batch's gradient where only its windows count: no pass over the box around them, which may be the whole object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray, IntArray, real_dtype
from hpcrec.backend.kernels.windows import peak_of_windows, step_windows
from hpcrec.backend.threads import Threads

BOUNDS = {"none": 0, "amplitude_bound": 1, "phase_only": 2}


@dataclass(frozen=True, slots=True)
class WindowSums:
    """Gradient and illumination of a batch in buffers on the whole of a state's box, zero outside of the windows.

    corners : (n, 2) first pixels of the windows (ny, nx), in ascending order of x
    obj : (thread, slice, y, x) ∂L/∂O*, illumination : (thread, slice, y, x) Σ|ψ_s|²: to be added over the threads

    Lent by the model until the next batch: who takes the sums must :meth:`step`, which clears them.
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
        bound: Literal["none", "amplitude_bound", "phase_only"] = "none",
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
