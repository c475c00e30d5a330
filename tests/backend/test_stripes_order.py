"""The striped kernels' sums in fixed point do not depend on the order of threads and blocks, nor on chunks."""

import dataclasses

import numpy as np
import pytest
from kernel_chains import (
    KERNELS,
    N_PATTERNS,
    compiled,
    make_chain,
    make_counts,
    plain,
)
from kernel_checks import check_deterministic_model, check_fixed_sums, check_sums_of_floats, dense_cases
from test_stripes_emulation import emulated, launcher

from hpcrec.backend import cuda
from hpcrec.errors import ConfigError, DivergedError
from hpcrec.models import fixed, launched, striped
from hpcrec.models.chain import ChainSums
from hpcrec.models.events import events_of

pytestmark = pytest.mark.emulation

# Seeds of the order, patterns of a chunk
ORDERS = [(1, 1), (2, 2), (3, 3), (4, 3)]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return compiled("stripes_host.cpp", KERNELS, tmp_path_factory.mktemp("order"), "-DONLY_128")


@pytest.fixture(scope="module")
def in_orders(kernel):
    def run(*given, deterministic):
        found = []
        for seed, chunk in ORDERS:
            kernel.begin_order(seed)
            found.append(emulated(kernel, *given, chunk=chunk, deterministic=deterministic))
        return found

    return run


@dense_cases
def test_sums_are_the_same_to_the_last_bit(in_orders, n_slices, n_modes, shifted, loss, dtype, masks):
    check_fixed_sums(in_orders, 128, n_slices, n_modes, shifted, loss, dtype, masks)


@dense_cases
def test_sums_of_floats_are_not(in_orders, n_slices, n_modes, shifted, loss, dtype, masks):
    """A proof of the stand-in: the orders that it tries do matter, to all that blocks share."""
    check_sums_of_floats(in_orders, 128, n_slices, n_modes, shifted, loss, dtype, masks)


def kernel_factors(chain):
    return cuda.pack_propagators(chain.propagators.astype(np.complex64))[0]


@pytest.mark.parametrize("loss", ["amplitude", "anscombe", "poisson"])
@pytest.mark.parametrize("n_slices", [1, 5])
@pytest.mark.parametrize("amplified", [0.3, 1.0, 1.6])
@pytest.mark.parametrize("power", [1e-3, 1.0, 1e2])
def test_bounds_hold_and_leave_enough_bits(loss, n_slices, amplified, power):
    """All windows at the same place, counts far from the model's, objects that absorb and that amplify."""
    chain = make_chain(128, n_slices, loss, seed=4, n_modes=2)
    patterns = make_counts(chain, np.uint16, seed=3)
    patterns[:, 5, 6] = 65535
    chain = dataclasses.replace(
        chain,
        obj=amplified * chain.obj,
        spectrum=power * chain.spectrum,
        corners=np.repeat(chain.corners[:1], N_PATTERNS, axis=0),
    )
    scales, found = fixed.scales_of(chain, patterns, kernel_factors(chain)), plain(chain, patterns, None)
    for name, scale in (("obj", scales.gradient), ("illumination", scales.illumination), ("probe", scales.probe)):
        assert scale == 2.0 ** np.log2(scale).round()
        assert 2.0**24 < np.abs(found[name]).max() * scale < 2.0**62, name


def test_a_bound_is_reached():
    """One pattern, a probe that is one pixel: its illumination is n Q, which the scale must leave room for."""
    chain = make_chain(128, 1, "amplitude", seed=4)
    chain = dataclasses.replace(chain, obj=np.ones_like(chain.obj), spectrum=np.zeros_like(chain.spectrum))
    chain.spectrum[0, 64, 64] = 1.5
    scales = fixed.scales_of(chain, make_counts(make_chain(128, 1, "amplitude", 1), np.uint8, 2), kernel_factors(chain))
    assert 2.0**61 <= len(chain.corners) * 1.5**2 * scales.illumination < 2.0**62


def test_scales_are_those_of_events_too():
    chain = make_chain(128, 2, "poisson", seed=4)
    patterns = make_counts(chain, np.uint8, seed=3)
    factors = kernel_factors(chain)
    assert fixed.scales_of(chain, patterns, factors) == fixed.scales_of(chain, events_of(patterns), factors)


def test_what_63_bits_cannot_hold_is_said():
    chain = make_chain(128, 5, "amplitude", seed=4)
    patterns, factors = make_counts(chain, np.uint8, seed=3), kernel_factors(chain)
    with pytest.raises(ConfigError, match="sums over 3 patterns behind an object that may amplify waves"):
        fixed.scales_of(dataclasses.replace(chain, obj=8 * chain.obj), patterns, factors)
    broken = chain.obj.copy()
    broken[0, 1, 2, 3] = np.nan
    with pytest.raises(DivergedError, match="not finite"):
        fixed.scales_of(dataclasses.replace(chain, obj=broken), patterns, factors)


def test_integers_pass_on_what_is_not_a_number():
    """Waves that hold one leave it in the totals; integers would hide it."""
    scales = fixed.Scales(gradient=4.0, illumination=2.0, probe=8.0)
    for total in (1.0, np.nan):
        arrays = {
            "totals": np.full((1, 8, 4, 3), total),
            "object_gradient": np.full((1, 3, 3, 2), [4, -8]),
            "illumination": np.full((1, 3, 3), 6),
            "probe_gradient": np.full((2, 1, 2, 2, 2), [8, -16]),
        }
        sums = ChainSums(
            origin=(0, 0),
            obj=np.zeros((1, 1, 3, 3), np.complex64),
            illumination=np.zeros((1, 1, 3, 3), np.float32),
            totals=np.zeros(3),
            spectrum=np.zeros((1, 2, 2), np.complex64),
        )
        striped._add_sums(arrays, scales, sums, shifted=False)
        for values, wanted in ((sums.obj, 1 - 2j), (sums.illumination, 3), (sums.spectrum, 2 - 4j)):
            assert np.isnan(values).all() if np.isnan(total) else (values == wanted).all()


def test_a_model_on_a_device_is_deterministic_if_asked(cupy, kernel, monkeypatch):
    """One mode on whole pixels, on a GPU whose blocks have too little shared memory for the fused kernel."""
    launches, launch = [], launcher(kernel)
    monkeypatch.setattr(launched, "launch", lambda *told: (launches.append(told[0]), launch(*told)))
    monkeypatch.setattr(launched, "shared_room", lambda: 99 * 1024)
    check_deterministic_model(cupy, kernel.begin_order, 128, 150.0)
    assert "stripe_back<128, true, false, true>" in launches
