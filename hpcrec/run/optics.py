"""What beam and lens of a job come to: the beam's wavelength, the distance between slices."""

from __future__ import annotations

from hpcrec.physics.beam import Beam, depth_of_field, electron_beam, photon_beam
from hpcrec.run.job import Job


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


def slice_thickness(job: Job) -> float:
    """Return the distance between slices in Å, 0 where the job gives none; ``"auto"`` is the depth of field."""
    given = job.ptychography.slice_thickness_angstrom
    if given != "auto":
        return given or 0.0
    depth = focus_depth(job)
    assert depth is not None
    return depth
