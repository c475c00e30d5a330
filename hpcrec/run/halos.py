"""Halos of tiles cut where the probe is weak: how far it reaches at the start, and whether it still does at the end."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import Array
from hpcrec.data.dataset import TiltSeries
from hpcrec.geometry.tiles import Box
from hpcrec.physics.probe import probe_reach
from hpcrec.run.job import Job
from hpcrec.run.optics import beam_of, slice_thickness
from hpcrec.run.start import TiltSetup, starting_probe


def cut_reach(job: Job, setup: TiltSetup) -> Box | None:
    """Return the part of the window that the starting probe reaches, in front of the slices or behind; None: all.

    It depends on job and data alone, so a continued run has the halos of the interrupted one.
    """
    if not job.parallel.halo_cut:
        return None
    depth = (setup.n_slices - 1) * setup.slice_thickness
    return probe_reach(setup.probe, setup.sampling, setup.wavelength, depth, job.parallel.halo_cut)


def planned_reach(job: Job, series: TiltSeries, n_slices: int) -> Box | None:
    """Return the same before there is a setup, for a tilt of ``n_slices``."""
    cut, beam = job.parallel.halo_cut, beam_of(job)
    if not cut:
        return None
    depth = (n_slices - 1) * slice_thickness(job)
    return probe_reach(
        starting_probe(job, series, n_slices), series.sampling, beam.wavelength if beam else 1.0, depth, cut
    )


def grown_probe(setup: TiltSetup, probe: Array, reach: Box | None, margin: int, cut: float) -> str | None:
    """Say that the probe (mode, y, x) has grown beyond the halos that were cut for the starting one, or return None."""
    if reach is None:
        return None
    depth = (setup.n_slices - 1) * setup.slice_thickness
    allowed = reach.grow(margin)
    if allowed.contains(probe_reach(probe, setup.sampling, setup.wavelength, depth, cut)):
        return None
    amplitude = np.sqrt(np.sum(np.abs(probe) ** 2, axis=0, dtype=np.float64))
    inside = allowed.intersect(Box(0, probe.shape[-2], 0, probe.shape[-1])).slices(Box(0, 0, 0, 0))
    outside = amplitude.copy()
    outside[inside] = 0
    return (
        f"tilt {setup.number}: the probe grew beyond the halos, which parallel.halo_cut = {cut:g} cut for the starting "
        f"one: up to {outside.max() / amplitude.max():.2g} of its largest amplitude lies outside, and the result may "
        "differ by about as much from that of other ranks; raise parallel.halo_margin_angstrom, or set "
        "parallel.halo_cut = 0"
    )
