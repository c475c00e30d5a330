"""The experiment to simulate: what a job file may choose, and what really happened at each tilt (the truth)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpcrec.backend.array import FloatArray
from hpcrec.data.specimen import SpecimenOptions
from hpcrec.errors import ConfigError
from hpcrec.geometry.pose import Pose, rotation_about, tilt_rotation
from hpcrec.geometry.scan import raster_positions
from hpcrec.options import options


@options
class OpticsOptions:
    """The beam and the lens.

    energy_ev : energy of the electrons
    semiangle_mrad : radius of the aperture
    soft_aperture : the aperture's edge falls over one detector pixel instead of at once
    defocus_angstrom : at the tilt axis; positive is underfocus (C10 = −defocus)
    aberrations_angstrom : further aberrations by name, "C12", "C30", … in Å and "phi12", … in rad; not C10
    source_sigma_angstrom : standard deviation of the effective source's Gaussian image on the sample, each direction
    focal_spread_angstrom : standard deviation of the chromatic spread of focus
    """

    energy_ev: float = 200e3
    semiangle_mrad: float = 30.0
    soft_aperture: bool = True
    defocus_angstrom: float = 80.0
    aberrations_angstrom: dict[str, float] = field(default_factory=dict)
    source_sigma_angstrom: float = 0.0
    focal_spread_angstrom: float = 0.0


@options
class ScanOptions:
    """The raster of probe positions, centred on the tilt axis.

    shape : positions along y and x
    step_angstrom : distance of neighbouring positions
    """

    shape: tuple[int, int] = (15, 15)
    step_angstrom: float = 1.8


@options
class DetectorOptions:
    """The detector.

    pixels : side of the square detector, even
    pixel_inverse_angstrom : sampling of a detector pixel; its inverse is the side of the probe's window
    """

    pixels: int = 48
    pixel_inverse_angstrom: float = 0.1


@options
class TiltOptions:
    """The nominal tilt series about one axis.

    first_deg : first tilt
    last_deg : last tilt
    n_tilts : how many tilts, equally spaced from the first to the last
    axis_deg : in-plane angle of the tilt axis from y, right-handed about the beam
    """

    first_deg: float = -65.0
    last_deg: float = 65.0
    n_tilts: int = 17
    axis_deg: float = 0.0


@options
class MultisliceOptions:
    """How finely the physics is computed.

    slice_thickness_angstrom : distance of the planes into which the atoms are projected
    grid_pixels : pixels of the computed window, at least the detector's; 1.5 times as many keep it free of aliases
    n_phonons : frozen-phonon configurations averaged in each pattern; 0 blurs the potential by the Debye-Waller factor
    phonon_seed : seed of the atoms' thermal displacements
    """

    slice_thickness_angstrom: float = 2.0
    grid_pixels: int = 72
    n_phonons: int = 4
    phonon_seed: int = 11


@options
class NuisanceOptions:
    """What goes wrong in a real experiment; each amount is a standard deviation and has a seed of its own.

    drift_angstrom : shift of the specimen at each tilt, in y and x
    drift_seed : seed of the drift
    tilt_error_deg : true minus nominal tilt
    tilt_error_seed : seed of the tilt errors
    in_plane_error_deg : rotation of the tilted specimen about the beam
    in_plane_error_seed : seed of the in-plane errors
    scan_jitter_angstrom : true minus nominal probe position, in y and x
    scan_jitter_seed : seed of the jitter
    defocus_error_angstrom : true minus nominal defocus at each tilt
    defocus_error_seed : seed of the defocus errors
    """

    drift_angstrom: float = 0.0
    drift_seed: int = 1
    tilt_error_deg: float = 0.0
    tilt_error_seed: int = 2
    in_plane_error_deg: float = 0.0
    in_plane_error_seed: int = 3
    scan_jitter_angstrom: float = 0.0
    scan_jitter_seed: int = 4
    defocus_error_angstrom: float = 0.0
    defocus_error_seed: int = 5


@options
class SimulationOptions:
    """A simulated tilt series of 4D-STEM data.

    specimen : what stands on the stage
    optics : beam, lens and partial coherence
    scan : raster of probe positions
    detector : pixels and sampling
    tilt : nominal tilt series
    multislice : fineness of the physics
    nuisance : drift, errors of angles and positions
    dose_electrons_per_angstrom2 : electrons on each Å² of the scanned field at each tilt
    noise_seed : seed of the Poisson counts
    """

    specimen: SpecimenOptions = field(default_factory=SpecimenOptions)
    optics: OpticsOptions = field(default_factory=OpticsOptions)
    scan: ScanOptions = field(default_factory=ScanOptions)
    detector: DetectorOptions = field(default_factory=DetectorOptions)
    tilt: TiltOptions = field(default_factory=TiltOptions)
    multislice: MultisliceOptions = field(default_factory=MultisliceOptions)
    nuisance: NuisanceOptions = field(default_factory=NuisanceOptions)
    dose_electrons_per_angstrom2: float = 46000.0
    noise_seed: int = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class TiltTruth:
    """What really happened at one tilt.

    tilt, axis_angle, in_plane : rad, r_lab = Rz(in_plane) R(tilt, axis_angle) r_sample
    drift : (dy, dx) Å, added to the rotated atoms
    defocus : Å at the tilt axis, positive underfocus
    jitter : (position, 2) Å, true minus nominal position (y, x)
    """

    tilt: float
    defocus: float
    jitter: FloatArray
    axis_angle: float = 0.0
    in_plane: float = 0.0
    drift: tuple[float, float] = (0.0, 0.0)

    @property
    def pose(self) -> Pose:
        """How the specimen stands in front of the beam."""
        rotation = rotation_about("z", self.in_plane) @ tilt_rotation(self.tilt, self.axis_angle)
        return Pose(rotation=rotation, shift=self.drift)


def nominal_tilts(chosen: TiltOptions) -> FloatArray:
    """Return the nominal tilts (tilt,) in rad."""
    return np.deg2rad(np.linspace(chosen.first_deg, chosen.last_deg, chosen.n_tilts))


def nominal_positions(chosen: ScanOptions) -> FloatArray:
    """Return the raster (position, 2) in Å (y, x), rows after each other, its middle at (0, 0)."""
    return raster_positions(chosen.shape, (chosen.step_angstrom, chosen.step_angstrom))


def tilt_truth(chosen: SimulationOptions, i_tilt: int) -> TiltTruth:
    """Return what happens at tilt ``i_tilt``: nominal values plus nuisances, the same in whatever order tilts run."""
    n = chosen.nuisance

    def draw(seed: int, amount: float, shape: tuple[int, ...] = ()) -> FloatArray:
        return amount * np.random.default_rng([seed, i_tilt]).standard_normal(shape)

    dy, dx = draw(n.drift_seed, n.drift_angstrom, (2,))
    return TiltTruth(
        tilt=float(nominal_tilts(chosen.tilt)[i_tilt] + np.deg2rad(draw(n.tilt_error_seed, n.tilt_error_deg))),
        axis_angle=float(np.deg2rad(chosen.tilt.axis_deg)),
        in_plane=float(np.deg2rad(draw(n.in_plane_error_seed, n.in_plane_error_deg))),
        drift=(float(dy), float(dx)),
        defocus=float(chosen.optics.defocus_angstrom + draw(n.defocus_error_seed, n.defocus_error_angstrom)),
        jitter=draw(n.scan_jitter_seed, n.scan_jitter_angstrom, (int(np.prod(chosen.scan.shape)), 2)),
    )


def check_experiment(chosen: SimulationOptions) -> None:
    """Raise one :class:`ConfigError` that lists every choice that cannot be simulated, a line each."""
    faults = [
        f"{name}: expected {expected}, got {value}" for name, expected, value, good in _requirements(chosen) if not good
    ]
    if faults:
        raise ConfigError("the experiment cannot be simulated:\n" + "\n".join(f"  {fault}" for fault in faults))


def _requirements(chosen: SimulationOptions) -> list[tuple[str, str, object, bool]]:
    """Return (key, what is expected, what came, whether it is good)."""
    s, d, o, m, t = chosen.scan, chosen.detector, chosen.optics, chosen.multislice, chosen.tilt
    counts = chosen.dose_electrons_per_angstrom2 * s.step_angstrom**2
    return [
        ("scan.shape", "at least one position along y and x", s.shape, min(s.shape) >= 1),
        ("scan.step_angstrom", "a positive length", s.step_angstrom, s.step_angstrom > 0),
        ("detector.pixels", "an even number of at least 8", d.pixels, d.pixels >= 8 and d.pixels % 2 == 0),
        (
            "detector.pixel_inverse_angstrom",
            "a positive sampling",
            d.pixel_inverse_angstrom,
            d.pixel_inverse_angstrom > 0,
        ),
        ("optics.energy_ev", "a positive energy", o.energy_ev, o.energy_ev > 0),
        ("optics.semiangle_mrad", "a positive angle", o.semiangle_mrad, o.semiangle_mrad > 0),
        (
            "optics.aberrations_angstrom",
            "no C10, which is −defocus_angstrom",
            "C10",
            "C10" not in o.aberrations_angstrom,
        ),
        ("optics.source_sigma_angstrom", "0 or more", o.source_sigma_angstrom, o.source_sigma_angstrom >= 0),
        ("optics.focal_spread_angstrom", "0 or more", o.focal_spread_angstrom, o.focal_spread_angstrom >= 0),
        (
            "multislice.grid_pixels",
            f"an even number of at least {d.pixels}",
            m.grid_pixels,
            m.grid_pixels >= d.pixels and m.grid_pixels % 2 == 0,
        ),
        (
            "multislice.slice_thickness_angstrom",
            "a positive length",
            m.slice_thickness_angstrom,
            m.slice_thickness_angstrom > 0,
        ),
        ("multislice.n_phonons", "0 or more", m.n_phonons, m.n_phonons >= 0),
        ("tilt.n_tilts", "at least 1", t.n_tilts, t.n_tilts >= 1),
        (
            "dose_electrons_per_angstrom2",
            "a positive dose with fewer than 1e7 electrons a pattern",
            chosen.dose_electrons_per_angstrom2,
            0 < counts < 1e7,
        ),
    ]
