import numpy as np
import pytest
from phantom import SHAPE, Phantom, total_of

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.engines.epie import Epie
from hpcrec.models.base import Batch
from hpcrec.objectives.losses import AMPLITUDE_FLOOR


@pytest.mark.parametrize("gamma", [1.0, 0.2])
def test_a_batch_of_one_pattern_is_the_published_serial_update(gamma):
    phantom = Phantom(precision="double")
    state = phantom.start
    # On a whole pixel the probe is not shifted, and the published formula applies as it stands
    state.positions = phantom.grid.to_length(np.rint(phantom.grid.to_pixels(state.positions)))
    alpha, beta = 0.9, 0.7
    engine = Epie(
        phantom.model,
        Epie.Options(
            object_step=alpha, probe_step=beta, object_regularity=gamma, probe_regularity=gamma, probe_start=0
        ),
    )
    engine.prepare(state)
    for j in (20, 21):
        y, x = phantom.model.windows(state.positions, phantom.grid)[0][j]
        window = (0, slice(y, y + SHAPE[0]), slice(x, x + SHAPE[1]))
        patch, probe = state.obj[window].copy(), state.probe[0].copy()
        far = fft2(patch * probe)
        # The loss's background ε is part of the modulus ratio
        chi = ifft2(far * (np.sqrt((phantom.patterns[j] + AMPLITUDE_FLOOR) / (np.abs(far) ** 2 + AMPLITUDE_FLOOR)) - 1))
        w, v = np.abs(probe) ** 2, np.abs(patch) ** 2
        wanted = patch + alpha * probe.conj() * chi / ((1 - gamma) * w + gamma * w.max())
        wanted_probe = probe + beta * patch.conj() * chi / ((1 - gamma) * v + gamma * v.max())
        partial = engine.accumulate("update", state, Batch(np.array([j]), phantom.patterns[j : j + 1], n_global=1))
        assert partial.fields["object_gradient"].box.shape == SHAPE
        engine.apply("update", state, total_of(partial))
        np.testing.assert_allclose(state.obj[window], wanted, atol=1e-9)
        np.testing.assert_allclose(state.probe[0], wanted_probe, atol=1e-7)


def test_slices_share_the_step_and_crowded_places_take_the_mean():
    """All slices move at once, so each takes its share of α: −α/2 · g / max(W, I) for two."""
    phantom = Phantom(2, precision="double")
    engine = Epie(phantom.model, Epie.Options(object_step=0.8))
    engine.prepare(phantom.start)
    partial = engine.accumulate("update", phantom.start, next(phantom.batches(8, 0)))
    gradient, light = partial.fields["object_gradient"], partial.fields["illumination"].values
    peak = (abs(phantom.start.probe) ** 2).sum(axis=0).max()
    assert light.min() < peak < light.max(), "both kinds of places must be there"
    before = phantom.start.obj.copy()
    engine.apply("update", phantom.start, total_of(partial))
    change = (phantom.start.obj - before)[(slice(None), *gradient.box.slices(phantom.box))]
    np.testing.assert_allclose(change, -0.4 * gradient.values / np.maximum(light, peak), atol=1e-12)
