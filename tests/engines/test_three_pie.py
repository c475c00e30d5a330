import numpy as np
import pytest
from phantom import Phantom

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.models.base import Batch
from hpcrec.models.revised import revised_gradients
from hpcrec.objectives.losses import AMPLITUDE_FLOOR
from hpcrec.physics.propagation import fresnel_factor


def test_one_pattern_is_revised_as_published():
    """Two slices, one pattern on a whole pixel: the published chain of revised waves, slice by slice."""
    phantom = Phantom(2, precision="double")
    state, model, rng = phantom.start, phantom.model, np.random.default_rng(0)
    state.positions = phantom.grid.to_length(np.rint(phantom.grid.to_pixels(state.positions)))
    state.obj = state.obj * (1 + 0.3 * rng.standard_normal(state.obj.shape))
    j, beta, gamma = 20, 0.8, 0.7
    y, x = model.windows(state.positions, phantom.grid)[0][j]
    first, last = state.obj[:, y : y + 32, x : x + 32]
    h = fresnel_factor((32, 32), model.sampling, model.wavelength, model.slice_thickness, dtype=np.complex128)
    probe = state.probe[0]
    inner = ifft2(h * fft2(probe * first))
    far = fft2(inner * last)
    power = np.abs(far) ** 2
    revised = ifft2(far * np.sqrt((phantom.patterns[j] + AMPLITUDE_FLOOR) / (power + AMPLITUDE_FLOOR)))
    difference = revised - inner * last
    on_last = inner.conj() * difference
    size = (1 - gamma) * np.abs(last) ** 2 + gamma * np.abs(last).max() ** 2
    inner_revised = inner + beta * last.conj() * difference / size
    # What the band limit of H takes away is not missing in the wave before it: only the change goes back
    behind_first = ifft2(h.conj() * fft2(inner_revised - inner))
    found = revised_gradients(model, state, Batch(np.array([j]), phantom.patterns[j : j + 1]), beta, gamma)
    scale = np.abs(on_last).max()
    np.testing.assert_allclose(found.obj[1], -on_last, atol=1e-9 * scale)
    np.testing.assert_allclose(found.obj[0], -probe.conj() * behind_first, atol=1e-9 * scale)
    np.testing.assert_allclose(found.probe[0], -first.conj() * behind_first, atol=1e-9 * scale)


@pytest.mark.parametrize("loss", ["amplitude", "poisson"])
def test_phase_objects_give_the_exact_gradient(loss):
    """|O| = 1: the published weights are the adjoint."""
    phantom = Phantom(3, 2, precision="double", loss=loss)
    state = phantom.start
    state.obj = np.exp(0.4j * np.random.default_rng(0).standard_normal(state.obj.shape))
    batch = next(phantom.batches(8, 0))
    found, exact = (
        revised_gradients(phantom.model, state, batch, 1.0, 1.0),
        phantom.model.gradients(state, batch, ["probe"]),
    )
    assert found.box == exact.box
    for name in ("obj", "probe", "illumination", "object_weight", "loss", "error", "counts"):
        wanted = np.asarray(getattr(exact, name))
        np.testing.assert_allclose(getattr(found, name), wanted, atol=1e-10 * np.abs(wanted).max(), err_msg=name)
