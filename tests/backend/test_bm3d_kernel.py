"""The compiled loops of BM3D against plain NumPy."""

import numpy as np
import pytest
from scipy.fft import dct

from hpcrec.backend.kernels.bm3d import BLOCK, collaborative_filter, haar, match_blocks


def blocks_like(image, y0, x0, reach):
    """All (score, y, x) in the search window, in order: the definition."""
    height, width = image.shape
    reference = image[y0 : y0 + BLOCK, x0 : x0 + BLOCK]
    rows = range(max(0, y0 - reach), min(height - BLOCK, y0 + reach) + 1)
    columns = range(max(0, x0 - reach), min(width - BLOCK, x0 + reach) + 1)
    return sorted((np.sum((image[y : y + BLOCK, x : x + BLOCK] - reference) ** 2), y, x) for y in rows for x in columns)


@pytest.mark.parametrize("start", [(0, 0), (11, 9), (22, 17)])
def test_matching_finds_the_nearest_blocks(start):
    image = np.random.default_rng(0).standard_normal((30, 25)).astype(np.float32)
    rows, columns = np.zeros((1, 8), np.int64), np.zeros((1, 8), np.int64)
    scores, count = np.zeros((1, 8), np.float32), np.zeros(1, np.int64)
    place = start[0], np.array(start[1:])
    match_blocks(image, *place, 6, 1e9, rows, columns, scores, count)
    truth = blocks_like(image.astype(np.float64), *start, 6)[:8]
    assert count == 8
    assert list(zip(rows[0], columns[0])) == [(y, x) for _, y, x in truth]
    np.testing.assert_allclose(scores[0], [s for s, _, _ in truth], rtol=1e-5)
    match_blocks(image, *place, 6, truth[3][0] * 1.0001, rows, columns, scores, count)
    assert count == 4


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_haar_is_orthonormal_and_inverts(n):
    group = np.random.default_rng(1).standard_normal((n, 5)).astype(np.float32)
    changed, work = group.copy(), np.zeros_like(group)
    haar(changed, work, True)
    np.testing.assert_allclose((changed**2).sum(), (group**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(changed[0], group.sum(axis=0) / np.sqrt(n), rtol=0, atol=1e-5)
    haar(changed, work, False)
    np.testing.assert_allclose(changed, group, rtol=0, atol=1e-5)


def plain_stage(noisy, pilot, starts, basis, window, n_max, reach, limit, sigma, shrinkage):
    """The filter in NumPy, one group at a time."""
    out, norm = np.zeros(noisy.shape), np.zeros(noisy.shape)
    for y0 in starts:
        for x0 in starts:
            near = [b for b in blocks_like(pilot, y0, x0, reach) if b[0] < limit][:n_max]
            near = near[: 2 ** int(np.log2(len(near)))]

            def spectra(image, near=near):
                return np.stack([basis @ image[y : y + BLOCK, x : x + BLOCK] @ basis.T for _, y, x in near])

            matrix = np.eye(len(near), dtype=np.float32)
            haar(matrix, np.zeros_like(matrix), True)
            group = np.tensordot(matrix, spectra(noisy), 1)
            if shrinkage > 0:
                group[np.abs(group) < shrinkage * sigma] = 0
                weight = 1 / max(np.count_nonzero(group), 1)
            else:
                power = np.tensordot(matrix, spectra(pilot), 1) ** 2
                factor = power / (power + sigma**2)
                group, weight = group * factor, 1 / (factor**2).sum()
            for block, (_, y, x) in zip(np.tensordot(matrix.T, group, 1), near):
                out[y : y + BLOCK, x : x + BLOCK] += weight * window * (basis.T @ block @ basis)
                norm[y : y + BLOCK, x : x + BLOCK] += weight * window
    return out / norm


@pytest.mark.parametrize("shrinkage", [2.7, 0.0])
def test_stage_equals_the_plain_one(shrinkage):
    rng = np.random.default_rng(2)
    clean = np.sin(np.arange(20) / 2)[:, None] * np.cos(np.arange(20) / 3)
    noisy = (clean + 0.2 * rng.standard_normal((20, 20))).astype(np.float32)
    pilot = clean.astype(np.float32) if shrinkage == 0 else noisy
    basis = dct(np.eye(BLOCK), axis=0, norm="ortho").astype(np.float32)
    window = np.outer(np.kaiser(BLOCK, 2.0), np.kaiser(BLOCK, 2.0)).astype(np.float32)
    starts = np.array([0, 4, 8, 12])
    settings = (8, 5, 64 * 6 * 0.04, 0.2, shrinkage)
    fast = collaborative_filter(noisy, pilot, starts, starts, basis, window, *settings)
    plain = plain_stage(noisy.astype(np.float64), pilot.astype(np.float64), starts, basis, window, *settings)
    # Of values up to 1
    np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-5)


def test_threads_change_nothing():
    rng = np.random.default_rng(3)
    noisy = rng.standard_normal((150, 40)).astype(np.float32)  # more rows than one band holds
    basis = dct(np.eye(BLOCK), axis=0, norm="ortho").astype(np.float32)
    starts_y, starts_x = np.arange(0, 143, 2), np.arange(0, 33, 4)
    settings = (basis, np.ones((8, 8), np.float32), 8, 5, 1e3, 1.0, 2.0)
    one, three = (collaborative_filter(noisy, noisy, starts_y, starts_x, *settings, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one, three)
    # one band at a time, and all at once: other order of float32 sums
    whole = plain_stage(
        noisy.astype(np.float64)[:30, :30], noisy.astype(np.float64)[:30, :30], np.arange(0, 23, 2), *settings
    )
    part = collaborative_filter(noisy[:30, :30].copy(), noisy[:30, :30].copy(), *2 * [np.arange(0, 23, 2)], *settings)
    np.testing.assert_allclose(part, whole, rtol=0, atol=1e-5 * np.abs(whole).max())
