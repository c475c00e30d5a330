"""Engines on a GPU end where they end on the processor."""

import pytest

from benchmarks.gpu import engines
from hpcrec.engines import ENGINES, engine_class


@pytest.fixture(scope="module", params=[1, 2])
def phantom(request):
    return engines.make_phantom(6, n_slices=request.param)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_ends_where_it_does_on_the_processor(gpu, phantom, name):
    """Ten iterations: on the processor, array code and compiled loops part by 3e-6 in single precision."""
    if engine_class(name).one_slice_only and len(phantom.start.obj) > 1:
        pytest.skip(f"{name} takes one slice only")
    row = engines.compare(gpu, phantom, name, 10)
    assert row["change"] > 0.05
    assert max(row["obj"], row["probe"], row["data error"]) <= engines.TOLERANCE, row
