import numpy as np
import pytest

from hpcrec.objectives.constraints import CONSTRAINTS


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_keep_phase_type_and_are_idempotent(name):
    obj = np.array([[[0.5 + 0.1j, 2 - 1j, 0.0, -1.0]]], np.complex64)
    once = CONSTRAINTS[name](obj)
    assert once.dtype == obj.dtype
    np.testing.assert_allclose(np.angle(once), np.angle(obj), atol=1e-6)
    np.testing.assert_allclose(CONSTRAINTS[name](once), once, rtol=1e-6)


def test_moduli():
    obj = np.array([0.5j, 2 - 1j, 0.0])
    np.testing.assert_allclose(np.abs(CONSTRAINTS["amplitude_bound"](obj)), [0.5, 1, 0])
    np.testing.assert_allclose(np.abs(CONSTRAINTS["phase_only"](obj)), [1, 1, 0])
