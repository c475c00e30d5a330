import numpy as np
import pytest

from hpcrec.objectives.regularizers import shrink, shrink_positive


@pytest.mark.parametrize(("prox", "penalty", "low"), [(shrink_positive, np.abs, 0.0), (shrink, np.abs, -3.0)])
def test_proximal_maps_against_search(prox, penalty, low):
    candidates = np.linspace(low, 3, 6001) if low == 0 else np.linspace(low, 3, 12001)
    for value in np.linspace(-2, 2, 17):
        best = candidates[np.argmin(0.5 * (candidates - value) ** 2 + 0.6 * penalty(candidates))]
        # half a step of the search grid
        assert prox(np.array([value]), 0.6)[0] == pytest.approx(best, abs=6e-4)


def test_type_is_kept():
    assert shrink_positive(np.ones(3, np.float32), 0.1).dtype == np.float32
    assert shrink(np.ones(3, np.float32), 0.1).dtype == np.float32
