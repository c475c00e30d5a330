import numpy as np
from phantom import SHAPE, Phantom, reconstruct, sweep, total_of

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.engines.base import visit
from hpcrec.engines.wasp import Wasp
from hpcrec.models.base import Batch
from hpcrec.objectives.losses import AMPLITUDE_FLOOR


def revised_wave(probe, patch, pattern):
    far = fft2(probe * patch)
    # The loss's background ε is part of the modulus ratio
    return ifft2(far * np.sqrt((pattern + AMPLITUDE_FLOOR) / (np.abs(far) ** 2 + AMPLITUDE_FLOOR)))


def published(phantom, windows, groups, alpha, beta):
    """A sweep of the publication: serial rPIE in each group, then the average of all revised waves."""
    obj, probe = phantom.start.obj[0].copy(), phantom.start.probe[0].copy()
    top, light = np.zeros_like(obj), np.zeros(obj.shape)
    probe_top, probe_light = np.zeros_like(probe), np.zeros(SHAPE)
    for group in groups:
        o, p = obj.copy(), probe.copy()
        for j in group:
            window, patch, old = windows[j], o[windows[j]].copy(), p.copy()
            wave = revised_wave(old, patch, phantom.patterns[j])
            top[window] += old.conj() * wave
            light[window] += np.abs(old) ** 2
            probe_top += patch.conj() * wave
            probe_light += np.abs(patch) ** 2
            chi, w, v = wave - old * patch, np.abs(old) ** 2, np.abs(patch) ** 2
            o[window] += old.conj() * chi / ((1 - alpha) * w + alpha * w.max())
            p += patch.conj() * chi / ((1 - beta) * v + beta * v.max())
    seen = light > 0
    obj[seen] = top[seen] / light[seen]
    return obj, probe_top / probe_light


def test_serial_sweeps_are_the_published_ones():
    phantom = Phantom(precision="double")
    state = phantom.start
    # On a whole pixel the probe is not shifted, and the published formula applies as it stands
    state.positions = phantom.grid.to_length(np.rint(phantom.grid.to_pixels(state.positions)))
    corners = phantom.model.windows(state.positions, phantom.grid)[0]
    windows = [(slice(y, y + SHAPE[0]), slice(x, x + SHAPE[1])) for y, x in corners]
    regularity = {"object_regularity": 0.3, "probe_regularity": 0.6, "object_step": 1.0, "probe_step": 1.0}
    chosen = Wasp.Options(groups=2, probe_start=0, inertia=0.0, **regularity)
    engine = Wasp(phantom.model, chosen)
    engine.prepare(state)
    obj, probe = published(phantom, windows, (range(32), range(32, 64)), 0.3, 0.6)
    for j in range(64):
        visit(engine, state, Batch(np.array([j]), phantom.patterns[j : j + 1], n_global=1), total_of)
    engine.finish_iteration(state)
    # The gauge gives the probe its power back
    factor = np.linalg.norm(state.probe) / np.linalg.norm(probe)
    np.testing.assert_allclose(state.probe[0], probe * factor, atol=1e-8 * np.abs(probe).max())
    np.testing.assert_allclose(state.obj[0] * factor, obj, atol=1e-6)


def test_groups_start_alike():
    """After the first of two groups the object is that of the sweep's start again, and the sums are kept."""
    phantom = Phantom()
    engine = Wasp(phantom.model, Wasp.Options(groups=2))
    engine.prepare(phantom.start)
    before, moves = phantom.start.obj.copy(), []
    for batch in phantom.batches(16, 0):
        visit(engine, phantom.start, batch, total_of)
        moves.append(not np.array_equal(phantom.start.obj, before))
    assert moves == [True, False, True, True]
    assert phantom.start.object_memory["weight"].max() > 0
    engine.finish_iteration(phantom.start)
    assert phantom.start.object_memory["weight"].max() == 0


def test_groups_start_from_what_constraints_left():
    """Between two sweeps a constraint changes object and probe: no group goes back behind it."""
    phantom = Phantom()
    engine, state = Wasp(phantom.model, Wasp.Options(groups=2, probe_start=0)), phantom.start
    engine.prepare(state)
    sweep(engine, state, phantom.batches(16, 0))
    state.obj, state.probe = state.obj / np.abs(state.obj), 0.5 * state.probe
    obj, probe = state.obj.copy(), state.probe.copy()
    for batch in list(phantom.batches(16, 1))[:2]:
        visit(engine, state, batch, total_of)
    np.testing.assert_array_equal(state.obj, obj)
    np.testing.assert_array_equal(state.probe, probe)


def test_the_rim_stays_still():
    """Pixels with 1e-8 of the peak's light would follow the noise; their old value holds them."""
    largest = []
    for inertia in (0.0, 1e-3):
        state, _ = reconstruct(Phantom(counts=1e4, noise=True), "wasp", 12, inertia=inertia)
        largest.append(np.abs(state.obj).max())
    assert largest[1] < 3
    assert largest[0] > 2 * largest[1]


def test_more_groups_average_more():
    """Published remark: more groups are slower; the error of the first sweeps says so."""
    errors = []
    for groups in (1, 4):
        phantom = Phantom()
        engine = Wasp(phantom.model, Wasp.Options(groups=groups))
        engine.prepare(phantom.start)
        errors.append([sweep(engine, phantom.start, phantom.batches(8, i)) for i in range(6)][-1])
    assert errors[0] < errors[1]
