"""4D data of a thin periodic phase object, exact up to round-off, for the tests of direct methods."""

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.backend.fft import fft2
from hpcrec.direct.raster import find_raster
from hpcrec.geometry.scan import raster_positions
from hpcrec.physics.probe import aberrated_probe

N, SAMPLING, WAVELENGTH, SEMIANGLE = 36, 0.25, 0.025, 0.022  # aperture of 7.9 pixels: 2α lies inside the scan's Nyquist


class ThinObject:
    """Every pixel of a periodic object is a position; the window is the whole object."""

    def __init__(self, strength=0.02, defocus=0.0, astigmatism=0.0, angle=0.0, smooth=1.6, seed=3, counts=0):
        rng = np.random.default_rng(seed)
        phase = gaussian_filter(rng.standard_normal((N, N)), smooth, mode="wrap")
        self.phase = strength * (phase - phase.mean()) / phase.std()
        self.aberrations = {"C10": -defocus, "C12": astigmatism, "phi12": angle}
        self.window = (SAMPLING, SAMPLING)
        self.probe = aberrated_probe((N, N), self.window, WAVELENGTH, SEMIANGLE, self.aberrations)
        self.positions = raster_positions((N, N), self.window, (N / 2 * SAMPLING, N / 2 * SAMPLING))
        self.raster = find_raster(self.positions)
        obj, patterns = np.exp(1j * self.phase), np.empty((N, N, N, N), np.float32)
        for y in range(N):
            waves = [np.roll(obj, (N // 2 - y, N // 2 - x), (0, 1)) * self.probe for x in range(N)]
            patterns[y] = np.abs(fft2(np.array(waves))) ** 2
        if counts:
            patterns = rng.poisson(counts * patterns).astype(np.uint16)
        self.patterns = patterns
        self.detector_sampling = (1 / (N * SAMPLING), 1 / (N * SAMPLING))


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])
