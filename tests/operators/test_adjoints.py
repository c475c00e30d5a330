import numpy as np
import pytest

from hpcrec.backend.fft import fft2
from hpcrec.operators import OPERATORS, operator_class
from hpcrec.operators.base import dot_test
from hpcrec.operators.patches import Patches
from hpcrec.operators.propagate import FarField, SubpixelShift


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_is_exact(name):
    operator = operator_class(name).example()
    # Round-off of the operator's own precision, with room for sums of some thousand terms
    tolerance = 1e3 * np.finfo(operator.dtype).eps
    assert dot_test(operator, np.random.default_rng(2)) < tolerance


def test_a_composition_has_the_composed_adjoint():
    shift = SubpixelShift.example()
    assert dot_test(FarField(shift.range, np.complex128) @ shift, np.random.default_rng(3)) < 1e-12


def test_maps_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match="cannot compose"):
        FarField((3, 4, 4)) @ SubpixelShift.example()


def test_a_window_outside_the_object_is_refused():
    with pytest.raises(ValueError, match="leaves the object"):
        Patches((1, 10, 10), np.array([[5, 0]]), (6, 6))


def test_shift_moves_towards_larger_coordinates():
    wave = np.zeros((1, 16, 16), complex)
    wave[0, 5, 6] = 1
    moved = SubpixelShift((16, 16), np.array([[2.0, -3.0]]), np.complex128).apply(wave)
    assert np.unravel_index(np.abs(moved[0]).argmax(), (16, 16)) == (7, 3)


def test_far_field_is_the_unitary_transform():
    wave = np.random.default_rng(4).standard_normal((2, 8, 9)).astype(complex)
    far = FarField.example().apply(wave)
    np.testing.assert_allclose(far, fft2(wave))
    assert np.linalg.norm(far) == pytest.approx(np.linalg.norm(wave), rel=1e-12)
