"""The logarithm of the Poisson loss against NumPy's in double precision."""

import numpy as np
import pytest
from numba import njit

from hpcrec.backend.kernels.logarithm import excess


@njit
def _all(ratio, off, out):
    for k in range(ratio.size):
        out[k] = excess(ratio[k], off[k])


@pytest.mark.parametrize(
    "off",
    [
        np.geomspace(1e-7, 0.4, 1001),
        -np.geomspace(1e-7, 0.29, 1001),
        np.geomspace(0.4, 1e7, 1001),
        np.geomspace(1e-8, 0.72, 1001) - 1,
    ],
    ids=["little more", "little less", "more", "less"],
)
def test_the_loss_of_a_ratio(off):
    ratio, out = (1 + off).astype(np.float32), np.empty(off.size, np.float32)
    _all(ratio, off.astype(np.float32), out)
    exact = (1 + off) * np.log1p(off) - off
    near = np.abs(off) < 1e-3
    exact[near] = (off**2 / 2 - off**3 / 6 + off**4 / 12)[near]
    np.testing.assert_allclose(out, exact, rtol=2e-6)


def test_a_ratio_of_one_costs_nothing():
    out = np.empty(1, np.float32)
    _all(np.ones(1, np.float32), np.zeros(1, np.float32), out)
    assert out[0] == 0
