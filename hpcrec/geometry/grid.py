"""Pixel grids: shape, sampling and origin, and the conversions between pixels, lengths and frequencies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import Array, FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A two-dimensional pixel grid.

    ``shape`` (ny, nx); ``sampling`` (dy, dx) in Å; ``origin`` (y, x) in Å is the centre of pixel [0, 0].
    """

    shape: tuple[int, int]
    sampling: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)

    def to_pixels(self, positions: Array) -> FloatArray:
        """Convert positions (…, 2) from Å to fractional pixels, float64."""
        return (np.asarray(positions, np.float64) - self.origin) / self.sampling

    def to_length(self, pixels: Array) -> FloatArray:
        """Convert fractional pixels (…, 2) to positions in Å, float64."""
        return np.asarray(pixels, np.float64) * self.sampling + self.origin

    def frequencies(self) -> tuple[FloatArray, FloatArray]:
        """Return ky (ny, 1) and kx (1, nx) in 1/Å, zero frequency at [0, 0], float64."""
        return (
            np.fft.fftfreq(self.shape[0], self.sampling[0])[:, None],
            np.fft.fftfreq(self.shape[1], self.sampling[1])[None, :],
        )


def object_grid(positions: Array, window: tuple[int, int], sampling: tuple[float, float], margin: int = 4) -> Grid:
    """Return the grid that holds every probe window of a scan, with ``margin`` pixels to spare on each side.

    ``positions`` (position, 2) in Å; ``window`` (ny, nx) pixels of the probe; ``sampling`` in Å. The origin lies a
    whole number of pixels from coordinate zero, so grids of several tilts differ by whole pixels only.
    """
    pixels = np.asarray(positions, np.float64) / sampling
    low = np.floor(pixels.min(axis=0)).astype(int) - np.array(window) // 2 - margin
    high = np.ceil(pixels.max(axis=0)).astype(int) + (np.array(window) + 1) // 2 + margin
    shape = high - low + 1
    return Grid(
        shape=(int(shape[0]), int(shape[1])),
        sampling=sampling,
        origin=(float(low[0] * sampling[0]), float(low[1] * sampling[1])),
    )
