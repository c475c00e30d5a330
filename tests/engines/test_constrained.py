"""Constraints between sweeps bring a reconstruction of few counts nearer to the truth."""

import numpy as np
import pytest
from phantom import Phantom, phase_error, sweep
from scipy.ndimage import gaussian_filter

from hpcrec.engines import engine_class
from hpcrec.objectives.constraints import Surroundings, constraint_class
from hpcrec.run.constrain import illumination_share

THICKNESS = 15.0


def few_counts(phases, counts):
    """A phantom of given phases (slice, y, x) with Poisson noise."""
    phantom = Phantom(len(phases), counts=counts, thickness=THICKNESS)
    phantom.truth.obj = np.exp(1j * phases).astype(np.complex64)
    phantom.start.obj = np.ones_like(phantom.truth.obj)
    mean = phantom.model.simulate(phantom.truth, np.arange(len(phantom.positions)))
    phantom.patterns = np.random.default_rng(1).poisson(mean).astype(np.uint16)
    return phantom


def boxes(shape):
    """A flat-topped object of one slice."""
    rng = np.random.default_rng(3)
    phase = np.zeros((1, *shape))
    for _ in range(6):
        y, x = rng.integers(0, np.array(shape) - 15)
        height, width = rng.integers(8, 18, 2)
        phase[0, y : y + height, x : x + width] += 0.2
    return phase


def atom_columns(shape, n_slices=4):
    """Blobs at the same places in all slices."""
    rng = np.random.default_rng(3)
    image = np.zeros(shape)
    image[tuple((rng.uniform(0, 1, (60, 2)) * shape).astype(int).T)] = rng.uniform(0.5, 1, 60)
    image = gaussian_filter(image, 2, mode="wrap")
    return np.repeat(0.5 * image[None] / image.max(), n_slices, axis=0)


def reconstruct(phantom, n_sweeps, name=None, **options):
    state, model = phantom.start, phantom.model
    cls = engine_class("lsqml")
    engine = cls(model, cls.Options(probe_start=100))
    engine.prepare(state)
    around = Surroundings(
        sampling=model.sampling,
        wavelength=model.wavelength,
        gaps=model.thicknesses(state),
        power=1.0,
        light=illumination_share(state.probe, state.positions, state.grid),
    )
    for i in range(n_sweeps):
        sweep(engine, state, phantom.batches(16, i))
        if name is not None:
            constraint = constraint_class(name)
            state.obj = constraint(constraint.Options(**options)).apply(state.obj[None], around)[0]
    return state.obj


def slice_error(found, truth, margin=16):
    """Relative rms error of each slice's phase inside the scan, without the offsets, which are free."""
    a, b = (np.angle(o[:, margin:-margin, margin:-margin]) for o in (found, truth))
    a, b = (p - p.mean(axis=(1, 2), keepdims=True) for p in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# Error of one slice of boxes at 5000 counts a pattern: 0.71 without, 0.53, 0.52 and 0.54 with
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tv", {"weight": 0.02}),
        ("butterworth", {"cutoff_inverse_angstrom": 0.4}),
        ("smoothness", {"sigma_angstrom": 0.3}),
    ],
)
def test_in_the_plane(name, options):
    shape = Phantom().grid.shape
    free, held = few_counts(boxes(shape), 5000), few_counts(boxes(shape), 5000)
    error = phase_error(reconstruct(free, 15), free.truth.obj)
    assert phase_error(reconstruct(held, 15, name, **options), held.truth.obj) < 0.8 * error


# Error of four slices of atom columns at 5000 counts a pattern: 0.49 without, 0.41, 0.38, 0.38 and 0.36 with
@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("kz_filter", {"beta": 1.0}, 0.87),
        ("layer_tv", {"weight_rad": 0.01}, 0.80),
        ("z_smoothing", {"sigma_angstrom": THICKNESS}, 0.80),
        ("identical_slices", {}, 0.76),
    ],
)
def test_along_the_beam(name, options, share):
    shape = Phantom().grid.shape
    free, held = few_counts(atom_columns(shape), 5000), few_counts(atom_columns(shape), 5000)
    error = slice_error(reconstruct(free, 10), free.truth.obj)
    assert slice_error(reconstruct(held, 10, name, **options), held.truth.obj) < share * error
