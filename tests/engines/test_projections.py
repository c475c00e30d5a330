"""The projection engines against compositions of reflectors in plain NumPy, on a toy of whole-pixel positions."""

import numpy as np
import pytest
from phantom import SHAPE, Phantom, phase_error, reconstruct, sweep, total_of

from hpcrec.engines import engine_class
from hpcrec.models.base import Batch
from hpcrec.models.waves import exit_waves
from hpcrec.objectives.losses import AMPLITUDE_FLOOR

BETA = 0.7


class Toy:
    """Windows, patterns and the two projections of a phantom under its true probe."""

    def __init__(self, phantom):
        state = phantom.start
        state.positions = phantom.grid.to_length(np.rint(phantom.grid.to_pixels(state.positions)))
        corners = phantom.model.windows(state.positions, phantom.grid)[0]
        self.windows = [(slice(y, y + SHAPE[0]), slice(x, x + SHAPE[1])) for y, x in corners]
        self.probe, self.patterns, self.shape = state.probe, phantom.patterns, phantom.grid.shape

    def overlap(self, waves):
        top, weight = np.zeros(self.shape, complex), np.zeros(self.shape)
        for window, wave in zip(self.windows, waves):
            top[window] += np.sum(self.probe.conj() * wave, axis=0)
            weight[window] += np.sum(np.abs(self.probe) ** 2, axis=0)
        obj = top / np.where(weight > 0, weight, 1)
        return np.stack([self.probe * obj[window] for window in self.windows])

    def moduli(self, waves):
        far = np.fft.fft2(waves, norm="ortho")
        power = np.sum(np.abs(far) ** 2, axis=1, keepdims=True)
        # The floor of the amplitude loss stands in model and data alike
        ratio = np.sqrt((self.patterns[:, None] + AMPLITUDE_FLOOR) / (power + AMPLITUDE_FLOOR))
        return np.fft.ifft2(far * ratio, norm="ortho")


def reflected(project, waves):
    return 2 * project(waves) - waves


def dm(toy, waves):
    return 0.5 * (waves + reflected(toy.moduli, reflected(toy.overlap, waves)))


def raar(toy, waves):
    return BETA * dm(toy, waves) + (1 - BETA) * toy.overlap(waves)


def er(toy, waves):
    return toy.moduli(toy.overlap(waves))


def relaxed_average(toy, waves):
    return 0.5 * sum((1 - BETA) * waves + BETA * p(waves) for p in (toy.overlap, toy.moduli))


COMPOSITIONS = {"dm": (dm, {}), "raar": (raar, {"relaxation": BETA}), "er": (er, {})}
COMPOSITIONS["relaxed_average"] = (relaxed_average, {"relaxation": BETA})
PURE = {"probe_start": 99, "object_inertia": 0.0, "noise_share": 0.0}


def steps(name, n_modes, n_steps):
    """Yield the engine's waves and those of the composition, both after each of some steps."""
    compose, options = COMPOSITIONS[name]
    phantom = Phantom(1, n_modes, precision="double")
    toy, cls = Toy(phantom), engine_class(name)
    engine, state = cls(phantom.model, cls.Options(**options, **PURE)), phantom.start
    engine.prepare(state)
    waves = state.pattern_memory["waves"].copy()
    for i in range(n_steps):
        sweep(engine, state, phantom.batches(64, i))
        waves = compose(toy, waves)
        yield state.pattern_memory["waves"], waves


@pytest.mark.parametrize("n_modes", [1, 2])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_step_is_the_composition_of_reflectors(name, n_modes):
    for found, wanted in steps(name, n_modes, 3):
        assert np.abs(found - wanted).max() < 1e-12 * np.abs(wanted).max()


def other_sign(toy, waves):
    """RAAR with β(Q − 1) for β(1 − Q), as Marchesini et al., J. Appl. Cryst. 49, 1245 (2016), print it."""
    overlap = toy.overlap(waves)
    return BETA * toy.moduli(2 * overlap - waves) + (1 - BETA) * overlap + BETA * (overlap - waves)


def test_the_sign_of_raar():
    """The engine is not the map of the other sign, and fits the patterns where that one does not."""
    phantom = Phantom(precision="double")
    toy = Toy(phantom)
    *_, (found, _) = steps("raar", 1, 20)
    wrong = toy.overlap(np.repeat(toy.probe[None], len(toy.windows), axis=0))
    for i in range(20):
        if i == 1:
            right = raar(toy, wrong)
            assert np.abs(other_sign(toy, wrong) - right).max() > 0.1 * np.abs(right).max()
        wrong = other_sign(toy, wrong)

    def misfit(waves):
        power = np.sum(np.abs(np.fft.fft2(toy.overlap(waves), norm="ortho")) ** 2, axis=1)
        return np.sum((np.sqrt(power) - np.sqrt(toy.patterns)) ** 2)

    assert misfit(found) < 0.05 * misfit(wrong)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_bad_pixels_are_free(name):
    """A block of dead pixels holds nonsense: with a mask the object is found as without it."""
    phantom = Phantom()
    mask = np.ones(SHAPE, bool)
    mask[2:6, 3:5] = False
    phantom.patterns[:, ~mask] = 1e6
    phantom.model.detector = type(phantom.model.detector)(mask=mask)
    state, errors = reconstruct(phantom, name, 20, noise_share=0.0)
    assert errors[-1] < 0.1 * errors[0]
    assert phase_error(state.obj, phantom.truth.obj) < 0.6


def test_noise_is_left_alone():
    """Counts of 10 a pixel: the bare difference map follows the noise, the bound holds it where the noise is."""
    found = []
    for share in (0.0, 0.75):
        phantom = Phantom(counts=1e4, noise=True)
        state, errors = reconstruct(phantom, "dm", 40, noise_share=share)
        found.append((errors[-1], phase_error(state.obj, phantom.truth.obj)))
    assert found[1][0] < 0.5 * found[0][0]
    assert found[1][1] < 0.5 * found[0][1]


class Move:
    """A refinement that moves every other position by two pixels and a bit with a batch, the others after a sweep."""

    wanted = ()

    def prepare(self, state):
        pass

    def due(self, state):
        return True

    def collect(self, state, batch, gradients):
        return {}

    def apply(self, state, sums):
        state.positions = state.positions.copy()
        state.positions[::2] += 0.9

    def finish(self, state):
        state.positions = state.positions.copy()
        state.positions[1::2] -= 0.9


def test_waves_go_along_with_windows_that_move():
    """What tells a wave from the model's stays as it was."""
    phantom = Phantom(precision="double")
    state, cls = phantom.start, engine_class("raar")
    engine = cls(phantom.model, cls.Options(**PURE), [Move()])
    own = np.arange(30)
    state.positions, state.own, phantom.patterns = state.positions[:30], own, phantom.patterns[:30]
    engine.prepare(state)
    batch = Batch(own, phantom.patterns, n_global=30)
    for name in ("object", "waves"):
        partial = engine.accumulate(name, state, batch)
        waves = [w for _, w in engine._pending]
        before = np.concatenate(waves) - exit_waves(phantom.model, state, own) if waves else None
        engine.apply(name, state, total_of(partial, engine.peaks.get(name, ())))
    assert np.abs(before).max() > 1
    for finish in (lambda state: None, engine.finish_iteration):
        finish(state)
        after = state.pattern_memory["waves"] - exit_waves(phantom.model, state, own)
        np.testing.assert_allclose(after, before, atol=1e-9 * np.abs(before).max())


def test_the_probe_turns_with_the_object_until_it_rests():
    phantom = Phantom(precision="double")
    phantom.start.probe = phantom.start.probe * np.exp(0.3j * np.arange(32) / 32)
    cls = engine_class("er")
    told = []
    for change in (0.9, 1e-7):
        engine = cls(phantom.model, cls.Options(probe_start=0, overlap_change=change, overlap_turns=7))
        state = Phantom(precision="double").start
        state.probe = phantom.start.probe.copy()
        engine.prepare(state)
        seen = []

        def heard(name, total_state, batch, accumulate=engine.accumulate, seen=seen):
            seen.append(name)
            return accumulate(name, total_state, batch)

        # In the first sweep the waves are PO, and nothing moves
        sweep(engine, state, phantom.batches(64, 0))
        engine.accumulate = heard
        sweep(engine, state, phantom.batches(64, 1))
        told.append(seen)
    assert told[0] == ["object", "probe", "waves"]
    assert told[1] == ["object", "probe"] * 7 + ["waves"]
