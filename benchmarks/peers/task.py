"""What one adapter is asked to do, and the clock it reports to. Needs NumPy only: it runs in the peers' environments.

The clock stands still while an object is copied, so that looking costs no program time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

# Pixels kept around the scanned box, for the registration
MARGIN = 8


class Task:
    """The data, read from ``--data``, and the answer, written to ``--out``.

    patterns (position, ky, kx) counts, zero frequency at n//2; positions (position, 2) Å and ``pixels`` the same in
    pixels, both (y, x); probe (mode, y, x); sampling Å; energy_ev; wavelength Å; semiangle rad; defocus Å, underfocus;
    n_slices; thickness Å of a slice; threads, algorithm, batch and step as the command line says.
    """

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        for name, kind in (("data", Path), ("out", Path), ("seconds", float), ("sweeps", int), ("threads", int)):
            parser.add_argument(f"--{name}", type=kind, required=True)
        for name, default in (("algorithm", ""), ("batch", 0), ("step", 0.0)):
            parser.add_argument(f"--{name}", type=type(default), default=default)
        asked = parser.parse_args()
        self.path, self.out = asked.data, asked.out
        self.seconds, self.min_sweeps, self.threads = asked.seconds, asked.sweeps, asked.threads
        self.algorithm, self.batch, self.step = asked.algorithm, asked.batch, asked.step
        with np.load(asked.data) as file:
            self.patterns, self.positions, self.probe = file["data"], file["positions"], file["probe"]
            self.sampling, self.energy_ev, self.wavelength = (
                float(file[k]) for k in ("sampling", "energy_ev", "wavelength")
            )
            self.semiangle, self.defocus = float(file["semiangle"]), float(file["defocus"])
            self.n_slices, self.thickness = int(file["slices"]), float(file["thickness"])
        self.n_positions, self.n = self.patterns.shape[:2]
        self.pixels = self.positions / self.sampling
        self.times: list[float] = []
        self.objects: list[np.ndarray] = []
        self._used, self._since = 0.0, 0.0

    def start(self) -> None:
        """Start the clock: the program is ready for its first sweep."""
        self._since = time.perf_counter()

    def more(self) -> bool:
        """Say whether another sweep is wanted; the first one, which compiles and plans, takes none of the seconds."""
        return len(self.times) < self.min_sweeps or self._used - self.times[0] < self.seconds

    def lap(self, transmission: np.ndarray, origin: np.ndarray) -> None:
        """End a sweep: note the time, keep the scanned box of the transmission (y, x), product of all slices.

        ``origin`` (2,): the pixel of it where position (0, 0) lies.
        """
        self._used += time.perf_counter() - self._since
        low = np.rint(self.pixels.min(axis=0) + origin).astype(int) - MARGIN
        high = np.rint(self.pixels.max(axis=0) + origin).astype(int) + MARGIN
        if (low < 0).any() or (high > transmission.shape).any():
            raise SystemExit(f"the object {transmission.shape} does not hold the scanned box {low} to {high}")
        kept = transmission[low[0] : high[0], low[1] : high[1]]
        self.times.append(self._used)
        self.objects.append(np.array(kept, np.complex64))
        self._since = time.perf_counter()

    def save(self, program: str, note: str = "") -> None:
        """Write times (sweep,) in s and objects (sweep, y, x)."""
        np.savez(self.out, times=self.times, objects=self.objects, program=program, note=note)
