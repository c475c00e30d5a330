"""Steps on all waves of a pattern at a time against NumPy."""

import numpy as np
import pytest

from hpcrec.backend.kernels.waves import AMPLITUDE, GAUSSIAN, POISSON, answer_amplitudes, carry_back, weigh

TOLERANCE = 1e-5


def random_waves(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("n_parts", [1, 3])
@pytest.mark.parametrize("pixels", [288, 2 * 1024 + 37])
def test_amplitudes_are_answered(n_parts, pixels):
    """Few pixels, and more than go through the detector at a time."""
    rng = np.random.default_rng(n_parts)
    waves, floor, unit = random_waves(rng, n_parts + 1, pixels), np.float32(0.375), np.float32(0.2)
    measured = rng.poisson(3, pixels).astype(np.float32)
    mask = (rng.random(pixels) < 0.8).astype(np.uint8)
    measured[mask == 0] = 0
    power = unit * np.sum(np.abs(waves[:n_parts].astype(np.complex128)) ** 2, axis=0)
    off = (1 - np.sqrt((measured + floor) / (power + floor))) * mask
    wanted = waves[:n_parts] * off * unit
    totals, beside = np.zeros(3), waves[n_parts].copy()
    flat = waves.view(np.float32)
    answer_amplitudes(flat, n_parts, np.zeros(pixels, np.float32), measured, mask, floor, unit, totals)
    assert_close(waves[:n_parts], wanted)
    np.testing.assert_array_equal(waves[n_parts], beside)
    error = np.sum((np.sqrt(power) - np.sqrt(measured)) ** 2 * mask)
    np.testing.assert_allclose(totals, [np.sum((power + floor) * off**2), error, measured.sum()], rtol=TOLERANCE)


@pytest.mark.parametrize("n_modes", [1, 3])
@pytest.mark.parametrize("to_probe", [False, True])
def test_waves_are_carried_back(n_modes, to_probe):
    """Modes of the second of two groups of waves, in front of the second of two slices, in a window off the corner."""
    rng = np.random.default_rng(n_modes)
    ny, nx, pad, scale = 6, 10, 8, np.float32(0.7)
    waves, kept = random_waves(rng, 2 * n_modes, ny * nx + pad), random_waves(rng, 2 * n_modes, 2, ny * nx + pad)
    obj, grad = random_waves(rng, 12, 15), random_waves(rng, 9, 13)
    light = rng.random((9, 13)).astype(np.float32)
    probe = random_waves(rng, n_modes, ny * nx)
    own = waves[n_modes:, : ny * nx].reshape(n_modes, ny, nx).copy()
    lit = kept[n_modes:, 1, : ny * nx].reshape(n_modes, ny, nx)
    window, to = obj[3:9, 4:14], (slice(2, 8), slice(1, 11))
    wanted_grad, wanted_light, wanted_waves = grad.copy(), light.copy(), waves.copy()
    wanted_grad[to] += np.sum(lit.conj() * own, axis=0)
    wanted_light[to] += np.sum(np.abs(lit) ** 2, axis=0)
    back = (window.conj() * own).reshape(n_modes, -1)
    wanted_probe = probe + scale * back if to_probe else probe.copy()
    if not to_probe:
        wanted_waves[n_modes:, : ny * nx] = back
    carry_back(
        waves.view(np.float32), n_modes, n_modes, kept.view(np.float32), n_modes, 1, obj.view(np.float32), 3, 4,
        grad.view(np.float32), light, 2, 1, ny, nx, (probe if to_probe else probe[:0]).view(np.float32), scale,
    )  # fmt: skip
    assert_close(grad, wanted_grad)
    assert_close(light, wanted_light)
    assert_close(waves, wanted_waves)
    assert_close(probe, wanted_probe)


@pytest.mark.parametrize("loss", [AMPLITUDE, POISSON, GAUSSIAN])
def test_errors_keep_their_digits(loss):
    """Of bright, well fitted counts, dark ones and bad ones; the last two give no not-a-number."""
    rng = np.random.default_rng(loss)
    measured = rng.poisson(1e5, 3000).astype(np.float32)
    counts = (measured + rng.normal(0, 30, measured.size)).astype(np.float32)
    mask = (rng.random(measured.size) < 0.8).astype(np.uint8)
    measured[:500] = counts[:300] = 0
    measured[mask == 0] = 0
    error = np.sum((np.sqrt(counts.astype(float)) - np.sqrt(measured.astype(float)))[500:] ** 2 * mask[500:])
    error += np.sum(counts[:500] * mask[:500], dtype=float)
    for dark in (0, 1):
        totals, weight = np.zeros(3), np.zeros(measured.size, np.float32)
        part = slice(0 if dark else 500, None)
        wanted = error if dark else error - np.sum(counts[:500] * mask[:500], dtype=float)
        weigh(weight[part], counts[part].copy(), measured[part], mask[part], loss, np.float32(0.01), totals)
        assert np.isfinite(weight).all()
        assert totals[1] == pytest.approx(wanted, rel=TOLERANCE)
