"""What tells rPIE, mPIE and PIE from ePIE, against their published serial formulas."""

import copy

import numpy as np
from phantom import SHAPE, Phantom, reconstruct, total_of

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.engines.base import visit
from hpcrec.engines.mpie import Mpie
from hpcrec.engines.pie import Pie
from hpcrec.models.base import Batch
from hpcrec.objectives.losses import AMPLITUDE_FLOOR


def one(phantom, j):
    return Batch(np.array([j]), phantom.patterns[j : j + 1], n_global=1)


def test_a_batch_of_one_pattern_is_the_published_pie():
    phantom = Phantom(precision="double")
    state = phantom.start
    # On a whole pixel the probe is not shifted, and the published formula applies as it stands
    state.positions = phantom.grid.to_length(np.rint(phantom.grid.to_pixels(state.positions)))
    engine = Pie(phantom.model, Pie.Options(object_step=0.9, object_regularity=0.2, probe_start=0))
    engine.prepare(state)
    before, probe = state.probe.copy(), np.abs(state.probe[0])
    for j in (20, 21):
        y, x = phantom.model.windows(state.positions, phantom.grid)[0][j]
        window = (0, slice(y, y + SHAPE[0]), slice(x, x + SHAPE[1]))
        patch = state.obj[window].copy()
        far = fft2(patch * state.probe[0])
        # The loss's background ε is part of the modulus ratio
        chi = ifft2(far * (np.sqrt((phantom.patterns[j] + AMPLITUDE_FLOOR) / (np.abs(far) ** 2 + AMPLITUDE_FLOOR)) - 1))
        weight = probe * state.probe[0].conj() / (probe.max() * (probe**2 + 0.2 * probe.max() ** 2))
        visit(engine, state, one(phantom, j), total_of)
        np.testing.assert_allclose(state.obj[window], patch + 0.9 * weight * chi, atol=1e-9)
    np.testing.assert_array_equal(state.probe, before)


def test_mpie_is_rpie_with_a_kick_after_every_few_patterns():
    same = {"object_regularity": 0.1, "probe_regularity": 0.5, "probe_start": 0}
    states = []
    for momentum, kick in ((0.6, 0.5), (0.6, 0.0)):
        phantom = Phantom(precision="double")
        options = Mpie.Options(patterns_per_kick=3, momentum=momentum, kick=kick, **same)
        engine = Mpie(phantom.model, options)
        engine.prepare(phantom.start)
        seen = [phantom.start.obj.copy()]
        for j in range(3):
            visit(engine, phantom.start, one(phantom, j), total_of)
            seen.append(phantom.start.obj.copy())
        states.append((seen, phantom, engine))
    (kicked, phantom, engine), (plain, _, _) = states
    np.testing.assert_array_equal(kicked[2], plain[2])
    first = plain[3] - plain[0]
    np.testing.assert_allclose(kicked[3], plain[3] + 0.5 * first, atol=1e-12)
    for j in (3, 4):
        visit(engine, phantom.start, one(phantom, j), total_of)
    without = Mpie(phantom.model, Mpie.Options(patterns_per_kick=99, **same))
    unkicked = copy.deepcopy(phantom.start)
    visit(without, unkicked, one(phantom, 5), total_of)
    visit(engine, phantom.start, one(phantom, 5), total_of)
    velocity = 0.6 * first + unkicked.obj - kicked[3]
    np.testing.assert_allclose(phantom.start.obj, unkicked.obj + 0.5 * velocity, atol=1e-12)


def test_the_gauge_is_no_motion():
    """The factor that gives the probe its power back is not part of the way since the last kick."""
    phantom = Phantom(2, 2, precision="double")
    engine, state = Mpie(phantom.model, Mpie.Options(probe_start=0)), phantom.start
    engine.prepare(state)
    mixed = np.array([[0.8, 0.6], [-0.6, 0.8]])
    state.probe = 1.3 * np.tensordot(mixed, state.probe, axes=1)
    state.memory["probe_before"], power = state.probe.copy(), np.sum(np.abs(state.probe) ** 2)
    engine.finish_iteration(state)
    assert np.sum(np.abs(state.probe) ** 2) < 0.7 * power
    np.testing.assert_allclose(state.object_memory["before"], state.obj, atol=1e-12)
    np.testing.assert_allclose(state.memory["probe_before"], state.probe, atol=1e-9 * np.abs(state.probe).max())


def test_the_family_outruns_epie():
    """In the order of the publication (Optica 4, 736, Fig. 3): ePIE, rPIE, mPIE; here by at least two each."""
    errors = [reconstruct(Phantom(), name, 15)[1][-1] for name in ("epie", "rpie", "mpie")]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
