import dataclasses

import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.pose import rotation_from_angles
from hpcrec.tomography.align import (
    AlignmentOptions,
    align,
    centres_of_mass,
    downsample,
    robust_weights,
    start_parameters,
)
from hpcrec.tomography.pose_step import pose_of, remove_gauge

PIXEL = 0.4
SIZE = (52, 60)


def crystal(seed=0):
    """Atoms (n, xyz) in Å of a small disordered block, and their weights."""
    rng = np.random.default_rng(seed)
    axes = (np.arange(5) - 2) * 2.6, (np.arange(5) - 2) * 2.4, (np.arange(5) - 2) * 2.7
    sites = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return sites + 0.25 * rng.normal(size=sites.shape), rng.choice([1.0, 2.0], len(sites))


def series(parameters, noise=0.0, seed=0, sigma=0.55):
    positions, strength = crystal()
    y, x = ((np.arange(n) - n // 2) * PIXEL for n in SIZE)
    images = []
    for dy, dx, in_plane, tilt, out_of_plane, *flat in parameters:
        lab = positions @ rotation_from_angles(in_plane, tilt, out_of_plane).T
        gy = np.exp(-((y - lab[:, 1:2] - dy) ** 2) / (2 * sigma**2)) * strength[:, None]
        gx = np.exp(-((x - lab[:, :1] - dx) ** 2) / (2 * sigma**2))
        images.append(gy.T @ gx + flat[0] + flat[1] * y[:, None] + flat[2] * x[None, :])
    stack = np.array(images, np.float32)
    return stack + noise * np.random.default_rng(seed).normal(size=stack.shape).astype(np.float32)


def true_parameters(n=24, seed=1, flat=True):
    rng = np.random.default_rng(seed)
    parameters = np.zeros((n, 8))
    parameters[:, :2] = 0.8 * rng.normal(size=(n, 2))
    nominal = np.deg2rad(np.linspace(-69, 69, n))
    parameters[:, 3] = nominal + np.deg2rad(0.5) * rng.normal(size=n)
    parameters[:, 2] = np.deg2rad(0.5) * rng.normal(size=n)
    if flat:
        parameters[:, 5] = 0.05 * rng.normal(size=n)
        parameters[:, 6:] = 0.003 * rng.normal(size=(n, 2))
    return parameters, nominal


def errors(found, truth):
    """Root mean square errors of shifts (Å) and of in-plane and tilt angles (degree) up to the gauge."""
    difference = remove_gauge(found, truth) - truth
    return (np.sqrt(np.mean(difference[:, :2] ** 2)), *np.rad2deg(np.sqrt(np.mean(difference[:, 2:4] ** 2, axis=0))))


def test_known_poses_are_recovered():
    truth, nominal = true_parameters()
    stack = series(truth, noise=0.05)
    options = AlignmentOptions(bins=(2, 1), rounds=(3, 8), offset_sigma_rad=0.1)  # the phantom has backgrounds
    found = align(stack, np.ones_like(stack), PIXEL, nominal, options)
    shift, in_plane, tilt = errors(found.parameters, truth)
    start_shift, start_in_plane, start_tilt = errors(found.start, truth)
    # measured: 0.006 Å, 0.08° and 0.2° after eight rounds; 0.1° moves an atom at 5 Å by 0.01 Å, 1/40 pixel
    assert shift < 0.012
    assert shift < start_shift
    assert in_plane < 0.3 * start_in_plane
    assert tilt < 0.65 * start_tilt
    assert found.history[-1].r1 < found.history[3].r1
    assert [h.bin for h in found.history] == [2] * 3 + [1] * 8
    # the mass of the background is gone: equal for all tilts to a few per cent
    assert np.std(found.mass) < 0.05 * np.mean(found.mass)
    assert found.without_background(stack, PIXEL).shape == stack.shape
    assert found.poses[3].shift == pytest.approx(tuple(found.shifts[3]))


def test_slabs_give_the_same_alignment():
    truth, nominal = true_parameters(n=12, flat=False)
    stack = series(truth)
    options = AlignmentOptions(bins=(2,), rounds=(2,), angles_from_scale=0)
    one, three = (align(stack, np.ones_like(stack), PIXEL, nominal, options, n_slabs=n) for n in (1, 3))
    # float32 sums in another order, passed on by two rounds
    np.testing.assert_allclose(one.parameters, three.parameters, atol=1e-4)


def test_a_spoilt_projection_loses_trust():
    truth, nominal = true_parameters(n=16, flat=False)
    stack = series(truth)
    stack[5] = np.roll(stack[5][::-1], 3, axis=0)
    found = align(stack, np.ones_like(stack), PIXEL, nominal, AlignmentOptions(bins=(2,), rounds=(4,)))
    assert found.weights.argmin() == 5
    assert found.weights[5] < 0.7
    assert np.median(found.weights) == 1.0


def test_centres_of_mass_follow_the_shift():
    truth, _ = true_parameters(flat=False)
    truth[:, 3] = 0.4  # the same view in all images
    stack = series(truth)
    centres = centres_of_mass(stack, np.ones_like(stack), PIXEL, 0.1)
    np.testing.assert_allclose(centres - centres[0], truth[:, :2] - truth[0, :2], atol=0.15)  # turned in plane by 0.5°
    with pytest.raises(DataError, match="no object"):
        centres_of_mass(np.zeros((2, 9, 9), np.float32), np.ones((2, 9, 9), np.float32), PIXEL, 0.1)


@pytest.mark.parametrize("size", [(20, 21), (21, 20), (19, 18), (24, 23)])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_downsampling_keeps_the_centre_pixel(size, factor):
    image = np.zeros((2, *size), np.float32)
    image[:, size[0] // 2, size[1] // 2] = 1.0
    small = downsample(image, factor)[1]
    assert np.unravel_index(small.argmax(), small.shape) == (small.shape[0] // 2, small.shape[1] // 2)
    assert np.all(np.abs(np.array(small.shape) - np.array(size) / factor) < 2)


def test_gauge_is_removed_and_nothing_else():
    truth, _ = true_parameters(flat=False)
    translation, turn = np.array([0.3, -0.5, 0.8]), rotation_from_angles(2e-3, -3e-3, 1e-3)
    moved = truth.copy()
    for row in moved:
        pose = pose_of(row)
        row[:2] += (pose.rotation @ translation)[[1, 0]]
        turned = pose.rotation @ turn
        row[3] = -np.arcsin(turned[2, 0])
        row[2], row[4] = np.arctan2(turned[1, 0], turned[0, 0]), np.arctan2(turned[2, 1], turned[2, 2])
    # first order in a rotation of 4 mrad
    np.testing.assert_allclose(remove_gauge(moved, truth), truth, atol=5e-5)
    noise = np.zeros_like(truth)
    noise[4, 0] = noise[7, 3] = 0.01
    kept = remove_gauge(truth + noise, truth) - truth
    assert kept[4, 0] > 0.008
    assert kept[7, 3] > 0.006


def test_robust_weights():
    weights = robust_weights(np.array([1.0, 1.1, 0.9, 1.0, 1.05, 5.0]))
    assert np.all(weights[:5] == 1.0)
    assert weights[5] < 0.2


def test_fixed_parameters_stay():
    truth, nominal = true_parameters(n=10, flat=False)
    stack = series(truth)
    options = dataclasses.replace(
        AlignmentOptions(bins=(2,), rounds=(1,), angles_from_scale=0), tilt_sigma_deg=0.0, offset_sigma_rad=0.0
    )
    start = start_parameters(stack, np.ones_like(stack), PIXEL, nominal, 0.1)
    found = align(stack, np.ones_like(stack), PIXEL, nominal, options, start=start)
    np.testing.assert_array_equal(found.parameters[:, 5], 0.0)
    assert np.abs(found.parameters[:, 2]).max() > 0
    with pytest.raises(ConfigError, match="rounds"):
        align(stack, np.ones_like(stack), PIXEL, nominal, AlignmentOptions(bins=(2, 1), rounds=(1,)))
