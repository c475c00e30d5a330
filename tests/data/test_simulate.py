import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcrec.data.experiment import (
    DetectorOptions,
    MultisliceOptions,
    NuisanceOptions,
    OpticsOptions,
    ScanOptions,
    SimulationOptions,
    TiltOptions,
    TiltTruth,
    check_experiment,
    nominal_positions,
    tilt_truth,
)
from hpcrec.data.simulate import (
    expected_patterns,
    field_grid,
    probe_spectra,
    simulate_tilt,
    simulate_tilt_series,
    slice_planes,
    transmissions,
    window_sampling,
)
from hpcrec.data.specimen import co3o4_cube, specimen_from_atoms
from hpcrec.errors import ConfigError
from hpcrec.geometry.grid import Grid
from hpcrec.physics.beam import electron_beam
from hpcrec.physics.scattering import projected_potential

BEAM = electron_beam(200e3)
SMALL = SimulationOptions(
    optics=OpticsOptions(defocus_angstrom=40.0),
    scan=ScanOptions(shape=(3, 4), step_angstrom=1.5),
    detector=DetectorOptions(pixels=32, pixel_inverse_angstrom=0.125),
    tilt=TiltOptions(first_deg=-60, last_deg=60, n_tilts=3),
    multislice=MultisliceOptions(grid_pixels=48, n_phonons=0),
)
NOTHING = specimen_from_atoms([], np.empty((0, 3)))
# A line of focused probes 0.5 Å apart, for finding a single atom.
LINE_X = replace(SMALL, scan=ScanOptions(shape=(1, 21), step_angstrom=0.5), optics=OpticsOptions(defocus_angstrom=0.0))
LINE_Y = replace(LINE_X, scan=ScanOptions(shape=(21, 1), step_angstrom=0.5))


def truth_of(chosen, **changes):
    defaults = {
        "tilt": 0.0,
        "defocus": chosen.optics.defocus_angstrom,
        "jitter": np.zeros((int(np.prod(chosen.scan.shape)), 2)),
    }
    return TiltTruth(**(defaults | changes))


def bright_disc(chosen):
    k = np.fft.fftfreq(chosen.detector.pixels, 1 / (chosen.detector.pixels * chosen.detector.pixel_inverse_angstrom))
    radius = chosen.optics.semiangle_mrad * 1e-3 / BEAM.wavelength
    return np.hypot(k[:, None], k) < radius + chosen.detector.pixel_inverse_angstrom


def brightest_position(chosen, specimen, **changes):
    """Return where (y, x) most electrons leave the bright disc: at the atom."""
    patterns = expected_patterns(chosen, specimen, truth_of(chosen, **changes))
    dark = patterns[:, ~bright_disc(chosen)].sum(axis=1)
    return nominal_positions(chosen.scan)[dark.argmax()]


def test_vacuum_shows_the_aperture():
    patterns = expected_patterns(SMALL, NOTHING, truth_of(SMALL))
    assert patterns.shape == (12, 32, 32)
    # Unitary transforms in float32: the probe's electrons are all in the aperture.
    np.testing.assert_allclose(patterns.sum(axis=(1, 2), dtype=float), 1, rtol=1e-4)
    assert patterns[:, ~bright_disc(SMALL)].max() < 1e-9
    assert patterns[0, 0, 0] == pytest.approx(patterns[7, 3, 2], rel=1e-3)


def test_a_thin_specimen_is_a_phase_object():
    flat = co3o4_cube(1, 0.5)
    flat = replace(flat, positions=flat.positions * np.array([0, 1, 1]))
    truth = truth_of(SMALL)
    patterns = expected_patterns(SMALL, flat, truth)
    grid = field_grid(nominal_positions(SMALL.scan), SMALL)
    wave = np.exp(1j * BEAM.interaction * projected_potential(flat.numbers, flat.positions[:, 1:], grid, 0.5))
    spectrum = np.fft.fft2(wave)
    ky, kx = grid.frequencies()
    limit = 2 / 3 * 0.5 / grid.sampling[0]
    wave = np.fft.ifft2(spectrum * ((np.abs(ky) <= limit) & (np.abs(kx) <= limit)))
    n = 48
    probe = np.fft.ifft2(probe_spectra(SMALL, BEAM, 40.0, 0.0)[0], norm="ortho")
    ky, kx = np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None]
    for i in (0, 5):
        # Written out once more without a shortcut: move the probe by a Fourier shift, multiply, transform, crop.
        pixel = grid.to_pixels(nominal_positions(SMALL.scan)[i])
        corner = np.round(pixel).astype(int) - n // 2
        dy, dx = pixel - corner
        moved = np.fft.ifft2(np.fft.fft2(probe) * np.exp(-2j * np.pi * (ky * dy + kx * dx)))
        exit_wave = moved * wave[corner[0] : corner[0] + n, corner[1] : corner[1] + n]
        far = np.fft.fftshift(np.abs(np.fft.fft2(exit_wave, norm="ortho")) ** 2)[8:40, 8:40]
        np.testing.assert_allclose(patterns[i], np.fft.ifftshift(far), atol=2e-5 * far.max())


def test_phase_is_positive_at_atoms_and_the_wave_is_only_turned():
    atoms = specimen_from_atoms([8], np.array([[0.0, 0.4, -0.7]]), 1.0)
    grid = Grid(shape=(80, 80), sampling=(0.15, 0.15), origin=(-6.0, -6.0))
    wave = transmissions(atoms, slice_planes(atoms, 2.0), 2.0, grid, BEAM)[0]
    peak = grid.to_length(np.unravel_index(np.angle(wave).argmax(), grid.shape))
    assert np.abs(peak - [0.4, -0.7]).max() < 0.08
    assert np.angle(wave).max() > 0.1
    assert np.abs(np.abs(wave) - 1).max() < 1e-2


def test_electrons_are_drawn_to_the_atom():
    atom = specimen_from_atoms([27], np.zeros((1, 3)), 0.5)
    patterns = expected_patterns(LINE_X, atom, truth_of(LINE_X))
    k = np.fft.fftfreq(32)[None, None, :]
    mean_kx = (patterns * k).sum(axis=(1, 2))
    assert mean_kx[8] > 0  # the probe is 1 Å to the left of the atom
    assert mean_kx[12] < 0
    assert abs(mean_kx[10]) < 0.05 * mean_kx[8]


def test_a_tilt_moves_the_downstream_atom_to_the_right():
    atom = specimen_from_atoms([27], np.array([[4.0, 0.0, 0.0]]), 0.5)
    found = brightest_position(LINE_X, atom, tilt=np.deg2rad(50), defocus=4.0 * np.cos(np.deg2rad(50)))
    assert found[1] == pytest.approx(4 * np.sin(np.deg2rad(50)), abs=0.3)
    found = brightest_position(LINE_X, atom, tilt=np.deg2rad(-50), defocus=4.0 * np.cos(np.deg2rad(50)))
    assert found[1] == pytest.approx(-4 * np.sin(np.deg2rad(50)), abs=0.3)


def test_a_tilt_about_x_moves_it_up():
    # The axis turned by −90° from y to x: Rx turns +z towards −y.
    atom = specimen_from_atoms([27], np.array([[4.0, 0.0, 0.0]]), 0.5)
    changes = {"tilt": np.deg2rad(50), "axis_angle": -np.pi / 2, "defocus": 4.0 * np.cos(np.deg2rad(50))}
    found = brightest_position(LINE_Y, atom, **changes)
    assert found[0] == pytest.approx(-4 * np.sin(np.deg2rad(50)), abs=0.3)


def test_drift_moves_the_specimen_and_jitter_the_probe():
    atom = specimen_from_atoms([27], np.zeros((1, 3)), 0.5)
    assert brightest_position(LINE_X, atom, drift=(0.0, 1.5))[1] == pytest.approx(1.5)
    assert brightest_position(LINE_Y, atom, drift=(-2.0, 0.0))[0] == pytest.approx(-2.0)
    right = np.tile([0.0, 1.0], (21, 1))
    assert brightest_position(LINE_X, atom, jitter=right)[1] == pytest.approx(-1.0)


def test_underfocus_comes_to_focus_downstream():
    def width(z):
        return 1 / np.sum(np.abs(np.fft.ifft2(probe_spectra(SMALL, BEAM, 40.0, z)[0])) ** 4)

    assert width(40.0) < 0.5 * width(20.0)
    assert width(40.0) < 0.5 * width(60.0)


def test_an_atom_may_lie_on_any_plane():
    # Thin slices converge: a cube of 8 Å in slices of 2 Å and of 1 Å give nearly the same patterns.
    cube = co3o4_cube(1, 0.5)
    coarse = expected_patterns(SMALL, cube, truth_of(SMALL))
    fine_options = replace(SMALL, multislice=replace(SMALL.multislice, slice_thickness_angstrom=1.0))
    fine = expected_patterns(fine_options, cube, truth_of(SMALL))
    flat = expected_patterns(SMALL, replace(cube, positions=cube.positions * [0, 1, 1]), truth_of(SMALL))
    residual = [np.sum((np.sqrt(a) - np.sqrt(fine)) ** 2) / fine.sum() for a in (coarse, flat)]
    # Atoms are at most 1 Å from their plane, against 4 Å when all are in one: about the square of that ratio is left.
    assert residual[0] < residual[1] / 10


def test_source_modes_blur_the_probe_by_a_gaussian():
    sigma = 0.3
    blurred = replace(SMALL, optics=replace(SMALL.optics, source_sigma_angstrom=sigma))
    coherent, modes = (np.fft.ifft2(probe_spectra(o, BEAM, 40.0, 0.0), norm="ortho") for o in (SMALL, blurred))
    assert len(coherent) == 1
    assert 5 <= len(modes) <= 25
    grid = Grid(shape=(48, 48), sampling=window_sampling(SMALL))
    ky, kx = grid.frequencies()
    gauss = np.exp(-2 * (np.pi * sigma) ** 2 * (ky**2 + kx**2))
    expected = np.fft.ifft2(np.fft.fft2(np.abs(coherent[0]) ** 2) * gauss).real
    intensity = (np.abs(modes) ** 2).sum(axis=0)
    # 1 % of the power is left out with the weakest modes.
    np.testing.assert_allclose(intensity, expected, atol=2e-2 * expected.max())
    assert expected.max() < 0.9 * (np.abs(coherent[0]) ** 2).max()
    assert intensity.sum() == pytest.approx(1)
    gram = np.einsum("iyx,jyx->ij", modes.conj(), modes)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-9


def test_focal_spread_is_an_average_over_foci():
    def intensity(chosen, defocus):
        modes = np.fft.ifft2(probe_spectra(chosen, BEAM, defocus, 0.0), norm="ortho")
        return (np.abs(modes) ** 2).sum(axis=0)

    spread = replace(SMALL, optics=replace(SMALL.optics, focal_spread_angstrom=8.0))
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    average = sum(w * intensity(SMALL, 40.0 + 8.0 * x) for w, x in zip(weights / weights.sum(), nodes, strict=True))
    # 1 % of the power is left out with the weakest modes; the spread itself changes the middle by far more.
    np.testing.assert_allclose(intensity(spread, 40.0), average, atol=2e-2 * average.max())
    assert np.abs(intensity(SMALL, 40.0) - average).max() > 0.05 * average.max()


def test_counts_are_dose_times_area():
    tilt = simulate_tilt(SMALL, co3o4_cube(1), 1)
    assert tilt.patterns.dtype == np.uint16
    per_position = tilt.patterns.sum(axis=(1, 2), dtype=float)
    # At most 1 % scatters beyond the detector of 50 mrad; the Poisson noise of 1e5 counts is 0.3 %.
    np.testing.assert_allclose(per_position, 46000 * 1.5**2, rtol=0.02)
    assert per_position.mean() < 46000 * 1.5**2


def test_frozen_phonons_average_to_diffuse_scattering():
    atom = co3o4_cube(1, 0.8)
    frozen = replace(SMALL, multislice=replace(SMALL.multislice, n_phonons=6))
    mean = expected_patterns(frozen, atom, truth_of(SMALL), seed=3)
    blurred = expected_patterns(SMALL, atom, truth_of(SMALL))
    dark = ~bright_disc(SMALL)
    # The blurred potential lacks the diffuse electrons: frozen phonons put more outside the disc.
    assert mean[:, dark].sum() > 1.05 * blurred[:, dark].sum()
    assert np.corrcoef(mean.ravel(), blurred.ravel())[0, 1] > 0.99


def test_every_tilt_is_the_same_in_any_order():
    shaky = replace(
        SMALL,
        multislice=replace(SMALL.multislice, n_phonons=1),
        nuisance=NuisanceOptions(drift_angstrom=0.5, scan_jitter_angstrom=0.1, tilt_error_deg=0.5),
    )
    cube, kept = co3o4_cube(1), {}
    steps = []
    simulate_tilt_series(shaky, cube, kept.__setitem__, lambda done, of: steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    alone = simulate_tilt(shaky, cube, 2)
    np.testing.assert_array_equal(alone.patterns, kept[2].patterns)
    assert alone.truth.drift == kept[2].truth.drift != kept[1].truth.drift


def test_each_nuisance_has_its_own_seed():
    def truth(**changes):
        amounts = {"drift_angstrom": 1.0, "scan_jitter_angstrom": 1.0, "tilt_error_deg": 1.0}
        return tilt_truth(replace(SMALL, nuisance=NuisanceOptions(**(amounts | changes))), 1)

    plain, other = truth(), truth(drift_seed=99)
    assert plain.drift != other.drift
    assert plain.tilt == other.tilt
    np.testing.assert_array_equal(plain.jitter, other.jitter)
    assert truth(tilt_error_deg=0.0).tilt == pytest.approx(0.0)


def test_all_faults_are_listed_at_once():
    wrong = replace(
        SMALL,
        scan=ScanOptions(shape=(0, 4), step_angstrom=-1.0),
        multislice=MultisliceOptions(grid_pixels=16),
        optics=OpticsOptions(aberrations_angstrom={"C10": 1.0}),
    )
    with pytest.raises(ConfigError) as error:
        check_experiment(wrong)
    for key in ("scan.shape", "scan.step_angstrom", "multislice.grid_pixels", "aberrations_angstrom"):
        assert key in str(error.value)


def test_a_probe_larger_than_its_window_is_refused():
    with pytest.raises(ConfigError, match="window"):
        expected_patterns(SMALL, NOTHING, truth_of(SMALL, defocus=400.0))
    beyond = replace(SMALL, optics=replace(SMALL.optics, semiangle_mrad=60.0))
    with pytest.raises(ConfigError, match="detector"):
        expected_patterns(beyond, NOTHING, truth_of(SMALL))


DATA = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared" / "data")) / "nanocube/nanocube-small.h5"


@pytest.mark.skipif(not DATA.is_file(), reason=f"the simulated nanocube {DATA} is missing")
def test_signs_against_an_independent_simulation():
    h5py = pytest.importorskip("h5py")
    i_tilt = 8  # −37.9°
    with h5py.File(DATA, "r") as file:
        truth = {
            name: file["truth"][name][i_tilt] for name in ("tilt_angles_deg", "inplane_deg", "defocus_A", "drift_A")
        }
        jitter = file["truth/scan_jitter_A"][i_tilt].reshape(25, 25, 2)[10:15, 10:15].reshape(-1, 2).astype(float)
        xyz, numbers = file["truth/atom_positions_A"][:].astype(float), file["truth/atomic_numbers"][:]
        counts = file["diffraction"][i_tilt].reshape(25, 25, 64, 64)[10:15, 10:15].reshape(-1, 64, 64)
    chosen = SimulationOptions(
        optics=OpticsOptions(defocus_angstrom=100.0, soft_aperture=False),
        scan=ScanOptions(shape=(5, 5), step_angstrom=1.6),
        detector=DetectorOptions(pixels=64, pixel_inverse_angstrom=0.078125),
        multislice=MultisliceOptions(grid_pixels=72, n_phonons=0, slice_thickness_angstrom=4.0),
    )
    measured = np.sqrt(np.fft.ifftshift(counts.astype(float), axes=(-2, -1)))

    def residual(tilt=1, defocus=1, dy=1, dx=1, jit=1, z=1):
        happened = TiltTruth(
            tilt=tilt * np.deg2rad(truth["tilt_angles_deg"]),
            in_plane=np.deg2rad(truth["inplane_deg"]),
            defocus=defocus * truth["defocus_A"],
            drift=(dy * truth["drift_A"][1], dx * truth["drift_A"][0]),
            jitter=jit * jitter,
        )
        atoms = specimen_from_atoms(numbers, xyz[:, ::-1] * [z, 1, 1], 0.3)
        mean = 46000 * 1.6**2 * expected_patterns(chosen, atoms, happened)
        return np.sum((np.sqrt(mean) - measured) ** 2) / np.sum(measured**2)

    right = residual()
    # Poisson noise alone gives 0.0048; slices of 4 Å without phonons, a coarse grid and other atoms the rest.
    assert right < 0.0105
    flips = {"tilt": -1, "defocus": -1, "dy": -1, "dx": -1, "jit": -1, "z": -1}
    wrong = {name: residual(**{name: sign}) for name, sign in flips.items()}
    assert min(wrong.values()) > 1.15 * right, wrong
    assert min(value for name, value in wrong.items() if name != "jit") > 3 * right, wrong
