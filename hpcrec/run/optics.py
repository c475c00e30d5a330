"""What beam and lens of a job come to: wavelength, modes of the probe, slices and their distance."""

from __future__ import annotations

import math
from typing import Final, Literal

from hpcrec.backend.array import FloatArray
from hpcrec.errors import ConfigError
from hpcrec.physics.beam import Beam, depth_of_field, electron_beam, photon_beam
from hpcrec.physics.probe import coherent_mode_shares
from hpcrec.run.job import Job

WORTH_A_MODE: Final = 0.01


def beam_of(job: Job) -> Beam | None:
    """Return the beam of a job, None where the data have pixel units only."""
    if job.beam is None:
        return None
    return (electron_beam if job.beam.kind == "electron" else photon_beam)(job.beam.energy_ev)


def focus_depth(job: Job) -> float | None:
    """Return the depth of field of the job's aperture in Å, None where it has none."""
    beam = beam_of(job)
    if beam is None or not job.probe.semiangle_mrad:
        return None
    return depth_of_field(beam.wavelength, job.probe.semiangle_mrad * 1e-3)


def chosen_slices(job: Job) -> int | list[int] | Literal["auto"]:
    """Return the job's slices: what it says, else ``"auto"`` where it gives the sample's thickness, else 1."""
    section = job.ptychography
    if section.slices is not None:
        return section.slices
    return 1 if section.sample_thickness_angstrom is None else "auto"


def slice_thickness(job: Job) -> float:
    """Return the distance between slices in Å, 0 where the job gives none; ``"auto"`` is the depth of field."""
    given = job.ptychography.slice_thickness_angstrom
    if given is None and chosen_slices(job) != "auto":
        return 0.0
    if given is None or given == "auto":
        depth = focus_depth(job)
        assert depth is not None
        return depth
    return given


def slice_count(job: Job, number: int, angle: float) -> int:
    """Return the number of slices of the tilt of this number in the input file.

    ``"auto"`` follows the sample's path length along the beam.

    Raises
    ------
    ConfigError : a list of fewer numbers than the data have tilts.
    """
    section, slices = job.ptychography, chosen_slices(job)
    if isinstance(slices, int):
        return slices
    if isinstance(slices, list):
        if number >= len(slices):
            raise ConfigError(
                f"ptychography.slices: {len(slices)} numbers, but there is a tilt {number}; give one for each tilt of "
                "the data, dropped ones included"
            )
        return slices[number]
    assert section.sample_thickness_angstrom is not None
    cos, sin = math.cos(angle), abs(math.sin(angle))
    path = 1 / max(cos, 0.1) if section.sample_shape == "film" else cos + sin
    return max(1, math.ceil(section.sample_thickness_angstrom * path / slice_thickness(job) - 0.25))


def mode_shares(job: Job) -> FloatArray | None:
    """Return the shares of power of the modes under the job's partial coherence; None where it gives none."""
    probe, beam = job.probe, beam_of(job)
    if beam is None or not probe.semiangle_mrad or not (probe.source_sigma_angstrom or probe.focal_spread_angstrom):
        return None
    semiangle = probe.semiangle_mrad * 1e-3
    return coherent_mode_shares(beam.wavelength, semiangle, probe.source_sigma_angstrom, probe.focal_spread_angstrom)


def mode_count(job: Job) -> int:
    """Return the number of probe modes; ``"auto"`` counts those of more than a hundredth of the power."""
    if job.probe.modes != "auto":
        return job.probe.modes
    shares = mode_shares(job)
    return 1 if shares is None else max(1, int((shares > WORTH_A_MODE).sum()))
