"""A simulated tilt series as one HDF5 file: counts, nominal geometry, and the truth it was made from.

Datasets: ``diffraction`` (tilt, position, ky, kx) uint16 with zero frequency at index N/2, ``scan_positions_A``
(position, 2) in (y, x), ``tilt_angles_deg`` (tilt,), and the group ``truth``, whose attribute ``convention`` says how
the atoms stand at each tilt. Attributes of the root hold beam, detector and dose.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcrec.data.experiment import SimulationOptions, check_experiment, nominal_positions, nominal_tilts
from hpcrec.data.simulate import SimulatedTilt, simulate_tilt_series
from hpcrec.data.specimen import Specimen, build_specimen, on_carbon
from hpcrec.errors import StorageError
from hpcrec.io.atoms import read_specimen
from hpcrec.physics.beam import electron_beam

_COMMENT = (
    "diffraction: (tilt, scan position, ky, kx) electron counts, zero frequency at index {centre}; scan: (y, x) "
    "nominal, A, origin at the centre of the field; tilt axis at {axis:g} degrees from y; beam along +z; "
    "defocus positive = underfocus, at the tilt axis"
)
_CONVENTION = (
    "atoms (x, y, z) at zero tilt; at tilt i they are Rz(inplane) Rz(axis) Ry(tilt) Rz(-axis) applied, then shifted by "
    "drift (x, y)"
)


def simulated_specimen(chosen: SimulationOptions) -> Specimen:
    """Return the specimen of a simulation, read from its file where the options name one."""
    s = chosen.specimen
    if s.kind == "file":
        return on_carbon(read_specimen(s.path, s.b_factor_angstrom2), s)
    return build_specimen(s)


def write_simulated_series(
    path: str | Path, chosen: SimulationOptions, progress: Callable[[int, int], None] | None = None
) -> None:
    """Simulate the series that ``chosen`` describes and write it to ``path``, replacing a file of that name.

    ``progress(n_done, n_tilts)`` is called after each tilt. The file appears under its name only when it is complete.
    :class:`ConfigError` for options that cannot be simulated, :class:`StorageError` if the file cannot be written.
    """
    check_experiment(chosen)
    specimen = simulated_specimen(chosen)
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with h5py.File(partial, "w") as file:
            _write_frame(file, chosen, specimen)
            simulate_tilt_series(chosen, specimen, lambda i_tilt, tilt: _write_tilt(file, i_tilt, tilt), progress)
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot write the simulated series ({error}); check space and permission"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_frame(file: h5py.File, chosen: SimulationOptions, specimen: Specimen) -> None:
    """Write everything that is known before the first tilt, and make room for the rest."""
    n_tilts, n_pixels = chosen.tilt.n_tilts, chosen.detector.pixels
    positions = nominal_positions(chosen.scan)
    file.attrs.update(_attributes(chosen))
    file.create_dataset("scan_positions_A", data=positions.astype(np.float32))
    file.create_dataset("tilt_angles_deg", data=np.rad2deg(nominal_tilts(chosen.tilt)).astype(np.float32))
    file.create_dataset(
        "diffraction",
        shape=(n_tilts, len(positions), n_pixels, n_pixels),
        dtype=np.uint16,
        chunks=(1, min(25, len(positions)), n_pixels, n_pixels),
        compression="gzip",
        compression_opts=4,
        shuffle=True,
    )
    truth = file.create_group("truth")
    truth.attrs["convention"] = _CONVENTION
    truth.attrs["axis_deg"] = chosen.tilt.axis_deg
    truth.create_dataset("atom_positions_A", data=specimen.positions[:, ::-1].astype(np.float32))
    truth.create_dataset("atomic_numbers", data=specimen.numbers.astype(np.int16))
    for name in ("tilt_angles_deg", "inplane_deg", "defocus_A"):
        truth.create_dataset(name, shape=(n_tilts,), dtype=np.float64)
    truth.create_dataset("drift_A", shape=(n_tilts, 2), dtype=np.float64)
    truth.create_dataset("scan_jitter_A", shape=(n_tilts, *positions.shape), dtype=np.float32)


def _attributes(chosen: SimulationOptions) -> dict[str, Any]:
    """Return the attributes of the file's root; names end in their unit."""
    detector, optics = chosen.detector, chosen.optics
    comment = _COMMENT.format(centre=detector.pixels // 2, axis=chosen.tilt.axis_deg)
    return {
        "comment": comment,
        "energy_eV": optics.energy_ev,
        "wavelength_A": electron_beam(optics.energy_ev).wavelength,
        "convergence_semiangle_mrad": optics.semiangle_mrad,
        "defocus_nominal_A": optics.defocus_angstrom,
        "detector_pixel_invA": detector.pixel_inverse_angstrom,
        "real_space_pixel_A": 1 / (detector.pixels * detector.pixel_inverse_angstrom),
        "dose_e_per_A2": chosen.dose_electrons_per_angstrom2,
        "scan_shape": np.array(chosen.scan.shape),
        "scan_step_A": chosen.scan.step_angstrom,
    }


def _write_tilt(file: h5py.File, i_tilt: int, tilt: SimulatedTilt) -> None:
    """Write one tilt; on disk the zero frequency stands at index N/2."""
    file["diffraction"][i_tilt] = np.fft.fftshift(tilt.patterns, axes=(-2, -1))
    truth, happened = file["truth"], tilt.truth
    truth["tilt_angles_deg"][i_tilt] = np.rad2deg(happened.tilt)
    truth["inplane_deg"][i_tilt] = np.rad2deg(happened.in_plane)
    truth["defocus_A"][i_tilt] = happened.defocus
    # Drift is (x, y) in the file as the atoms are, jitter (y, x) as the scan is.
    truth["drift_A"][i_tilt] = happened.drift[::-1]
    truth["scan_jitter_A"][i_tilt] = happened.jitter
