"""The tomography stage on projections without noise: wherever the tilt axis lies, one answer in the scan's frame."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "backend"))

from emulated_projector import emulated

from hpcrec.analysis.atoms import AtomOptions
from hpcrec.backend import projector
from hpcrec.data.experiment import NuisanceOptions, SimulationOptions, TiltOptions, TiltTruth, tilt_truth
from hpcrec.data.specimen import Specimen, posed, specimen_from_atoms
from hpcrec.engines.fista import FistaOptions
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.pose import rotation_from_angles
from hpcrec.io.results import (
    ProjectionStore,
    TiltResult,
    assemble_projections,
    read_volume,
    tilt_path,
    write_tilt_result,
)
from hpcrec.physics.scattering import projected_potential
from hpcrec.run.directory import RunDirectory
from hpcrec.run.job import AnalysisSection, Job, TomographySection
from hpcrec.run.measure import angles_about, measure
from hpcrec.run.stack import ProjectionStack, gather_stack
from hpcrec.run.volume import half_volumes, reconstruct_volume
from hpcrec.tomography.align import AlignmentOptions
from hpcrec.tomography.denoise import DenoiseOptions
from hpcrec.tomography.executor import InlineExecutor
from hpcrec.tomography.prepare import PrepareOptions, prepare_projection
from hpcrec.tomography.turn import turn_rotation

N_TILTS = 9
PIXEL = 0.5
CENTRE = (22, 25)


class Here(InlineExecutor):
    """One worker: this process."""

    n_slots = 1


def silent(event: Any) -> None:
    """Hear nothing."""


def particle() -> Specimen:
    """A lopsided block of gold, 2.8 Å between neighbours: no turn or mirror brings it onto itself."""
    sites = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    kept = ~((sites[:, 2] > 0) & (sites[:, 1] > 0)) & ~((sites[:, 0] > 0) & (sites[:, 2] < 0))
    positions = 2.8 * sites[kept] + 0.1 * np.random.default_rng(0).normal(size=(kept.sum(), 3))
    return specimen_from_atoms(np.full(kept.sum(), 79), positions, b_factor=6.0)


def truths(axis_deg: float) -> list[TiltTruth]:
    chosen = SimulationOptions(
        tilt=TiltOptions(first_deg=-66, last_deg=66, n_tilts=N_TILTS, axis_deg=axis_deg),
        nuisance=NuisanceOptions(drift_angstrom=0.4, in_plane_error_deg=0.3, tilt_error_deg=0.3),
    )
    return [tilt_truth(chosen, i) for i in range(N_TILTS)]


def write_run(folder: Path, axis_deg: float) -> RunDirectory:
    """Write ``projections.h5`` with phases of 1e-3 rad/(V·Å), and the truth beside it."""
    (folder / "checkpoints").mkdir(parents=True)
    grid = Grid(shape=(46, 48), sampling=(PIXEL, PIXEL), origin=(-CENTRE[0] * PIXEL, -CENTRE[1] * PIXEL))
    y, x = (np.abs(np.arange(n) * PIXEL + o) for n, o in zip(grid.shape, grid.origin))
    seen = np.where((y[:, None] < 9.5) & (x[None, :] < 10.0), 1.0, 0.0).astype(np.float32)
    scan = np.array([[-8.0, -8.0], [8.0, 8.0]])
    nominal = np.linspace(-66, 66, N_TILTS)
    for i, truth in enumerate(truths(axis_deg)):
        standing = posed(particle(), truth.pose)
        phase = 1e-3 * projected_potential(standing.numbers, standing.positions[:, 1:], grid, standing.b_factors)
        result = TiltResult(
            tilt_index=i,
            tilt_deg=float(nominal[i]),
            obj=np.exp(1j * phase)[None].astype(np.complex64),
            probe=np.ones((1, 4, 4), np.complex64),
            positions=scan,
            illumination=seen,
            loss=np.ones(1),
            data_error=np.ones(1),
            sampling=grid.sampling,
            origin=grid.origin,
            slice_thickness=0.0,
            engine="test",
            iterations=1,
            seconds=0.0,
        )
        write_tilt_result(tilt_path(folder / "checkpoints", i), result)
    assemble_projections(folder)
    write_truth(folder / "truth.h5", axis_deg)
    return RunDirectory(folder)


def write_truth(path: Path, axis_deg: float) -> None:
    happened = truths(axis_deg)
    with h5py.File(path, "w") as file:
        group = file.create_group("truth")
        group.attrs["axis_deg"] = axis_deg
        group["atomic_numbers"] = particle().numbers
        group["atom_positions_A"] = particle().positions[:, ::-1]
        group["tilt_angles_deg"] = np.rad2deg([t.tilt for t in happened])
        group["inplane_deg"] = np.rad2deg([t.in_plane for t in happened])
        group["drift_A"] = np.array([t.drift for t in happened])[:, ::-1]


def job_of(folder: Path, axis_deg: float, **changes: Any) -> Job:
    section = TomographySection(
        tilt_axis_deg=axis_deg, thickness_angstrom=14.0, alignment=AlignmentOptions(bins=(2,), rounds=(6,)), **changes
    )
    atoms = AtomOptions(species=("Au",))
    return Job(
        name="test",
        data=None,
        tomography=section,
        analysis=AnalysisSection(atoms=atoms, reference=str(folder / "truth.h5")),
    )


def test_atoms_and_poses_come_out_in_the_frame_of_the_scan(tmp_path: Path) -> None:
    """With the axis at 30° all atoms stand where they do in the scan; the true axis, tilts and drift are found."""
    directory = write_run(tmp_path / "run", 30.0)
    job = job_of(directory.path, 30.0, half_sets=False, fista=FistaOptions(n_iterations=12))
    reconstruct_volume(job, "key", directory, Here(), silent)
    measure(job, directory, silent)
    quality = directory.read_json(directory.quality)
    comparison = quality["atoms"]["comparison"]
    assert comparison["species"]["Au"]["found"] == len(particle().numbers)
    # Found without noise: 0.02 Å at a voxel of 0.5 Å. A rotation would take out a wrong frame, so it must be small.
    assert comparison["rms_angstrom"] < 0.06
    assert comparison["removed_rotation_deg"] < 1.0
    # 0.4 Å and 0.3° went in; the angles of 9 tilts of 21 atoms are known to 1° at best.
    assert max(quality["alignment"]["shift_rms_yx_angstrom"]) < 0.06
    assert max(quality["alignment"]["angle_rms_deg"].values()) < 1.5
    assert quality["tilts"][0]["n_residues"] == 0
    volume = read_volume(directory.volume)
    assert volume.attributes["tilt_axis_deg"] == 30.0
    true = np.array([truth.pose.rotation for truth in truths(30.0)])
    # Up to the freedom of the sample, about 1°: sin 1.5° = 0.03. About y, the same tilts differ by up to 0.6.
    np.testing.assert_allclose(volume.arrays["alignment/rotations"], true, atol=0.04)
    # The drift comes back but for the sample's own place, which no measurement can tell.
    moved = volume.arrays["alignment/shifts_angstrom"] - np.array([truth.drift for truth in truths(30.0)])
    place, *_ = np.linalg.lstsq(true[:, [1, 0]].reshape(-1, 3), moved.ravel(), rcond=None)
    assert np.abs(moved - true[:, [1, 0]] @ place).max() < 0.1


def test_field_turns_with_the_axis(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", 0.0).projections

    def stack(**changes: Any) -> ProjectionStack:
        return gather_stack(path, TomographySection(**changes), Here(), silent)

    plain, quarter, oblique = stack(), stack(tilt_axis_deg=90.0), stack(tilt_axis_deg=30.0)
    prepared = prepare_projection(*first_tilt(path), PrepareOptions())
    ny, nx = (n // 2 for n in plain.prepared.shape[1:])
    seen = prepared.phase[CENTRE[0] - ny : CENTRE[0] + ny + 1, CENTRE[1] - nx : CENTRE[1] + nx + 1]
    np.testing.assert_array_equal(plain.prepared[0], seen)
    # Turned by −90°, the axis from along −x to along y: only pixels move
    np.testing.assert_array_equal(quarter.prepared, np.rot90(plain.prepared, 1, axes=(1, 2)))
    np.testing.assert_array_equal(quarter.weights, np.rot90(plain.weights, 1, axes=(1, 2)))
    assert plain.centre == quarter.centre == oblique.centre == (0.0, 0.0)
    # A field of 2a × 2b turned by 30° reaches a cos 30° + b sin 30°
    reach = np.array(plain.weights.shape[1:]) / 2
    wanted = np.array([[np.cos(np.pi / 6), 0.5], [0.5, np.cos(np.pi / 6)]]) @ reach
    assert np.abs(np.array(oblique.weights.shape[1:]) / 2 - wanted).max() < 2
    np.testing.assert_allclose(oblique.prepared.sum((1, 2)), plain.prepared.sum((1, 2)), rtol=1e-3)
    assert not oblique.prepared[oblique.weights == 0].any()
    cut = stack(tilt_axis_deg=30.0, field_angstrom=(10.0, 8.0))
    assert cut.prepared.shape[1:] == (21, 17)
    assert cut.centre == plain.centre


def first_tilt(path: Path) -> tuple[Any, Any, tuple[float, float]]:
    with ProjectionStore(path) as store:
        tilt = store.tilt(0)
    return tilt.obj, tilt.illumination, tilt.sampling


def test_halves_come_from_projections_that_were_not_denoised(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", 0.0).projections
    section = TomographySection(denoise=DenoiseOptions(method="tv", sigma=0.1), tilt_axis_deg=20.0)
    stack = gather_stack(path, section, Here(), silent)
    assert np.abs(stack.used - stack.prepared).max() > 0.01
    solved = {}

    def solve(data: np.ndarray, picks: np.ndarray, name: str) -> SimpleNamespace:
        solved[name] = data[picks]
        return SimpleNamespace(volume=data)

    problem: Any = SimpleNamespace(stack=stack, aligned=lambda projections: projections, solve=solve)
    assert set(half_volumes(problem)) == {"halves/even", "halves/odd"}
    np.testing.assert_array_equal(solved["even tilts"], stack.prepared[::2])
    np.testing.assert_array_equal(solved["odd tilts"], stack.prepared[1::2])


def test_angles_about_another_axis_mean_the_same_rotation() -> None:
    angles = np.deg2rad([[0.3, 50.0, -0.2], [-1.0, -65.0, 0.4]])
    moved = angles_about(0.5, angles, 0.45)
    for before, after in zip(angles, moved):
        about_first = turn_rotation(rotation_from_angles(*before), 0.45)
        np.testing.assert_allclose(turn_rotation(rotation_from_angles(*after), 0.5), about_first, atol=1e-12)
    np.testing.assert_allclose(angles_about(0.5, angles, 0.5), angles, atol=1e-12)


@pytest.mark.slow
@pytest.mark.emulation
def test_a_stage_on_a_device_finds_the_host_s_volume(
    tmp_path: Path, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denoised, aligned and reconstructed on the pretended device, whose kernels the CPU runs: no GPU has run this."""
    kernels = emulated(tmp_path)
    monkeypatch.setattr(projector, "launch", kernels.launch)
    changes = {"half_sets": False, "fista": FistaOptions(n_iterations=4), "denoise": DenoiseOptions(method="bm3d")}
    found = {}
    for device in ("cpu", "gpu"):
        directory = write_run(tmp_path / device, 0.0)
        job = job_of(directory.path, 0.0, **changes)
        options = dataclasses.replace(job.tomography.alignment, rounds=(2,), volume_iterations=2)
        job = dataclasses.replace(job, tomography=dataclasses.replace(job.tomography, alignment=options))
        reconstruct_volume(job, "key", directory, Here(device=device), silent)
        assert bool(kernels.launches) == (device == "gpu")
        found[device] = read_volume(directory.volume)
    wanted, there = found["cpu"], found["gpu"]
    assert np.abs(there.volume - wanted.volume).max() < 1e-3 * np.abs(wanted.volume).max()
    for name in ("projections/denoised", "projections/reprojected"):
        expected = wanted.arrays[name]
        assert np.abs(there.arrays[name] - expected).max() < 1e-3 * np.abs(expected).max(), name
    np.testing.assert_allclose(there.arrays["convergence/r1"], wanted.arrays["convergence/r1"], rtol=1e-4)
