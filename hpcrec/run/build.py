"""The forward model, the refinements and the engine of one tilt, built from the job."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from hpcrec.backend.array import BoolArray, ComplexArray, FloatArray, complex_dtype
from hpcrec.backend.fft import fft2
from hpcrec.engines import engine_class
from hpcrec.engines.base import Engine
from hpcrec.models.chain import Detector
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.propagation import propagation_rate, tilted_factor
from hpcrec.refine import refinement_class
from hpcrec.refine.base import Refinement
from hpcrec.run.job import Job
from hpcrec.run.means import PLAIN, Means
from hpcrec.run.optics import slice_thickness


def build_model(
    job: Job,
    window: tuple[int, int],
    sampling: tuple[float, float],
    wavelength: float,
    mask: BoolArray | None = None,
    means: Means = PLAIN,
) -> PtychographyModel:
    """Return the forward model; ``window`` is that of the probe, ``mask`` (ky, kx) that of the patterns."""
    chosen, section = job.detector, job.ptychography
    detector = Detector(
        loss=getattr(getattr(section, section.engine), "loss", "amplitude"),
        mask=mask,
        propagator=near_field_factor(job, window, sampling, wavelength) if chosen.field == "near" else None,
        saturation=chosen.saturation_counts,
        blur=_point_spread(window, chosen.point_spread_pixels * chosen.upsampling, section.precision),
        binning=chosen.upsampling,
    )
    return PtychographyModel(
        window,
        sampling,
        wavelength,
        slice_thickness(job),
        detector=detector,
        flight=_flight(chosen.flight_points, chosen.flight_angstrom),
        propagation=section.propagation,
        precision=section.precision,
        kernel=section.kernel,
        threads=means.threads,
        wave_bytes=means.wave_bytes,
        deterministic=section.deterministic,
    )


def build_engine(job: Job, model: PtychographyModel) -> Engine:
    """Return the job's engine with its refinements."""
    name = job.ptychography.engine
    engine: Engine = engine_class(name)(model, getattr(job.ptychography, name), refinements(job, model))
    return engine


def refinements(job: Job, model: PtychographyModel) -> list[Refinement]:
    """Return what the job refines beside object and probe, in the order of the section."""
    chosen = [(f.name, getattr(job.refine, f.name)) for f in fields(job.refine)]
    return [refinement_class(name)(model, options) for name, options in chosen if options is not None]


def near_field_factor(
    job: Job, window: tuple[int, int], sampling: tuple[float, float], wavelength: float
) -> ComplexArray:
    """Return the factor of the way to a near-field detector, whose image has its centre, like a probe, at n//2.

    Patterns come with the centre at [0, 0]; the factor moves it there, by a whole number of pixels.
    """
    rate = propagation_rate(window, sampling, wavelength)
    factor = tilted_factor(rate, sampling, job.detector.distance_angstrom or 0.0, dtype=np.complex128)
    ky, kx = (np.exp(2j * np.pi * np.fft.fftfreq(n) * (n // 2)) for n in window)
    found: ComplexArray = factor * ky[:, None] * kx[None, :]
    return found.astype(complex_dtype(job.ptychography.precision))


def _point_spread(window: tuple[int, int], width: float, precision: str) -> ComplexArray | None:
    """Return the transfer function of a Gaussian point spread of standard deviation ``width`` in model pixels."""
    if width == 0:
        return None
    y, x = (np.fft.fftfreq(n, 1 / n) for n in window)
    spread = np.exp(-0.5 * (y[:, None] ** 2 + x[None, :] ** 2) / width**2)
    # The unitary transform needs √n to be the plain sum
    found: ComplexArray = fft2((spread / spread.sum()).astype(np.complex128)) * np.sqrt(spread.size)
    return found.astype(complex_dtype(precision))


def _flight(n_points: int, way: tuple[float, float]) -> FloatArray | None:
    """Return where the probe is during an exposure (point, 2), evenly along the way, centred on the position."""
    if n_points == 1:
        return None
    share = (np.arange(n_points) + 0.5) / n_points - 0.5
    found: FloatArray = share[:, None] * np.array(way)
    return found
