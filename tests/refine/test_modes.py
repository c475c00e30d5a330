import numpy as np

from hpcrec.refine.modes import orthogonal_rotation, rotate_modes


def modes_of(n):
    rng = np.random.default_rng(5)
    return rng.standard_normal((n, 8, 9)) + 1j * rng.standard_normal((n, 8, 9))


def test_modes_become_orthogonal_and_sorted_with_the_same_intensity():
    modes = modes_of(4)
    rotation = orthogonal_rotation(modes)
    turned = rotate_modes(rotation, modes)
    np.testing.assert_allclose(rotation @ rotation.conj().T, np.eye(4), atol=1e-12)
    flat = turned.reshape(4, -1)
    gram = flat.conj() @ flat.T
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-10)
    assert (np.diff(np.diag(gram).real) < 0).all()
    np.testing.assert_allclose(np.sum(np.abs(turned) ** 2, 0), np.sum(np.abs(modes) ** 2, 0), rtol=1e-12)


def test_orthogonal_modes_stay_as_they_are():
    modes = modes_of(3)
    turned = rotate_modes(orthogonal_rotation(modes), modes)
    np.testing.assert_allclose(rotate_modes(orthogonal_rotation(turned), turned), turned, atol=1e-10)


def test_precision_is_kept():
    modes = modes_of(2).astype(np.complex64)
    assert rotate_modes(orthogonal_rotation(modes), modes).dtype == np.complex64
