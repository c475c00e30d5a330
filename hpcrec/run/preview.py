"""The phase of one tilt at once, by a direct method, with the job's probe and geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hpcrec.backend.array import Array, FloatArray
from hpcrec.data.dataset import TiltScan, TiltSeries
from hpcrec.direct.com import icom_phase, mean_frequency
from hpcrec.direct.lens import fit_lens
from hpcrec.direct.parallax import BrightField, bright_field, fit_shifts, parallax_image, phase_from_parallax
from hpcrec.direct.raster import Raster, find_raster
from hpcrec.direct.ssb import ssb_phase, useful_upsampling
from hpcrec.direct.wdd import wdd_object
from hpcrec.errors import ConfigError
from hpcrec.io.base import open_series
from hpcrec.run.evidence import widest_probe
from hpcrec.run.job import Job
from hpcrec.run.optics import beam_of
from hpcrec.run.picks import compact_subset, tilt_index
from hpcrec.run.start import starting_probe

PATTERN_BYTES: Final = 1 << 30
_READ: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture: ``image`` (y, x) float32, ``sampling`` (dy, dx), ``quantity`` shown, ``notes`` for the caption.

    ``length_unit`` of the sampling: "Å", or "px" where the data have no other.
    """

    image: FloatArray
    sampling: tuple[float, float]
    method: str
    tilt: int
    angle: float
    quantity: str = "phase (rad)"
    notes: tuple[str, ...] = ()
    length_unit: str = "Å"


def make_preview(job: Job, method: str, tilt: int | None = None) -> Preview:
    """Return the picture of a tilt by a method of the table.

    ``tilt`` is its number in the input file, default the one nearest to zero. A scan whose patterns take over 1 GiB is
    cut to its middle. Raises :class:`ConfigError` for an unknown method or tilt, a near field, or a scan that is no
    raster where the method needs one.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: choose one of {', '.join(METHODS)}")
    if job.detector.field == "near":
        raise ConfigError("previews are made from far-field patterns; a near field needs hpcrec run")
    with open_series(job.data) as series:
        shown = METHODS[method](job, series, series.tilt(tilt_index(series, tilt)))
    return replace(shown, length_unit="Å" if job.beam else "px")


def _icom(job: Job, series: TiltSeries, scan: TiltScan) -> Preview:
    raster = find_raster(scan.positions)
    parts = np.array_split(np.arange(scan.n_positions), -(-scan.n_positions // _READ))
    field = np.concatenate([mean_frequency(scan.read(p), series.detector_sampling, scan.mask) for p in parts])
    field = (field - field.mean(axis=0))[raster.order].reshape(*raster.shape, 2)
    # Waves longer than half the field are mostly noise, which integration makes large
    length = float(np.min(raster.shape * np.linalg.norm(raster.vectors, axis=1)))
    return _on_raster("icom", icom_phase(field, raster, high_pass=1 / length), raster, scan)


def _ssb(job: Job, series: TiltSeries, scan: TiltScan) -> Preview:
    # Signals and their spectrum stand beside the counts
    raster, patterns, notes = _block(scan, scan.dtype.itemsize + 4 + 8)
    probe = starting_probe(job, series, 1)
    u = useful_upsampling(probe, raster, series.sampling)
    image = ssb_phase(patterns, probe, raster, series.sampling, mask=scan.mask, upsampling=u)
    return _on_raster("ssb", image, raster, scan, notes)


def _wdd(job: Job, series: TiltSeries, scan: TiltScan) -> Preview:
    raster, patterns, notes = _block(scan, 8)
    obj = wdd_object(patterns, starting_probe(job, series, 1), raster, series.sampling)
    return _on_raster("wdd", np.angle(obj), raster, scan, notes)


def _block(scan: TiltScan, bytes_a_pixel: int) -> tuple[Raster, Array, tuple[str, ...]]:
    """Return the raster, or as much of its middle as fits, with its patterns (rows, columns, ky, kx)."""
    whole = find_raster(scan.positions)
    most = PATTERN_BYTES // (int(np.prod(scan.pattern_shape)) * bytes_a_pixel)
    share = min(1.0, float(np.sqrt(most / scan.n_positions)))
    if share == 1.0:
        return whole, scan.read(whole.order).reshape(*whole.shape, *scan.pattern_shape), ()
    shape = (max(int(whole.shape[0] * share), 2), max(int(whole.shape[1] * share), 2))
    first = [(n - m) // 2 for n, m in zip(whole.shape, shape)]
    picks = whole.order.reshape(whole.shape)[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]].ravel()
    raster = Raster(shape=shape, vectors=whole.vectors, order=picks, residual=whole.residual)
    notes = (f"the middle {shape[0]} × {shape[1]} of {whole.shape[0]} × {whole.shape[1]} positions",)
    return raster, scan.read(picks).reshape(*shape, *scan.pattern_shape), notes


def _on_raster(method: str, image: FloatArray, raster: Raster, scan: TiltScan, notes: tuple[str, ...] = ()) -> Preview:
    steps = np.linalg.norm(raster.vectors, axis=1) * raster.shape[0] / len(image)
    turn = float(np.degrees(np.arctan2(raster.vectors[1, 0], raster.vectors[1, 1])))
    if abs(turn) > 0.5:
        notes = (*notes, f"drawn along the scan's rows, which are turned by {turn:.1f}°")
    return Preview(
        image=np.asarray(image, np.float32),
        sampling=(float(steps[0]), float(steps[1])),
        method=method,
        tilt=scan.number,
        angle=scan.angle,
        notes=notes,
    )


def _parallax(job: Job, series: TiltSeries, scan: TiltScan) -> Preview:
    one = int(np.prod(scan.pattern_shape)) * scan.dtype.itemsize
    subset = compact_subset(scan.positions, min(scan.n_positions, max(PATTERN_BYTES // one, 16)))
    positions = scan.positions[subset]
    seen = bright_field(scan.read(subset), series.detector_sampling, scan.mask, n_pixels=200)
    step = float(np.sqrt(np.prod(np.ptp(positions, axis=0)) / max(len(positions) - 1, 1)))
    pixel = max(0.5 * step, *series.sampling)
    matrix, phase, notes = _aligned(job, series, positions, seen)
    image, _ = parallax_image(positions, seen, matrix, pixel)
    quantity = "phase (rad)" if phase is not None else "aligned bright field, relative"
    return Preview(
        image=image if phase is None else phase(image, pixel),
        sampling=(pixel, pixel),
        method="parallax",
        tilt=scan.number,
        angle=scan.angle,
        quantity=quantity,
        notes=notes,
    )


def _aligned(
    job: Job, series: TiltSeries, positions: FloatArray, seen: BrightField
) -> tuple[FloatArray, Callable[[FloatArray, float], FloatArray] | None, tuple[str, ...]]:
    """Return the shift matrix, what turns the aligned picture into a phase (None without a lens), and notes."""
    reach = widest_probe(series, positions)
    coarse = seen if len(seen.k) < 100 else thinned(seen)
    shifts = fit_shifts(positions, coarse, reach)[False]
    beam, probe = beam_of(job), job.probe
    if beam is None or probe.source != "aperture" or probe.semiangle_mrad is None:
        return shifts.matrix, None, ("no aperture is given: contrast may be inverted",)
    radius = probe.semiangle_mrad * 1e-3 / beam.wavelength
    fit = fit_lens(positions, coarse, beam.wavelength, shifts, reach / (radius * beam.wavelength), radius=radius)
    wrong_sign = fit.c10 * -probe.defocus_angstrom < 0 if probe.defocus_angstrom else np.trace(fit.turn) < 0
    fit = fit.conjugate() if wrong_sign else fit
    turn = float(np.degrees(np.arctan2(fit.turn[0, 1] - fit.turn[1, 0], np.trace(fit.turn))))
    notes = [f"measured: defocus {-fit.c10:.0f} Å, astigmatism {fit.astigmatism[0]:.0f} Å, scan turned by {turn:.1f}°"]
    if abs(turn) > 3:
        notes.append("the turn should be 0°: see hpcrec calibrate data")
    # The phase's contrast is that of the scan's frame: S is turned back into it
    scan_hessian = fit.turn.T @ fit.hessian @ fit.turn
    a, b = (scan_hessian[1, 1] - scan_hessian[0, 0]) / 2, scan_hessian[0, 1]
    wavelength = beam.wavelength

    def phase(image: FloatArray, pixel: float) -> FloatArray:
        return phase_from_parallax(image, pixel, wavelength, fit.c10, c12a=float(a), c12b=float(b))

    return -wavelength * fit.turn.T @ fit.hessian, phase, tuple(notes)


def thinned(seen: BrightField, n_pixels: int = 80) -> BrightField:
    """Return about ``n_pixels`` of the groups of bright-field pixels, spread over the disc: enough to fit the lens."""
    picks = np.unique(np.linspace(0, len(seen.k) - 1, n_pixels).astype(np.int64))
    return BrightField(k=seen.k[picks], signals=seen.signals[:, picks], means=seen.means[picks], radius=seen.radius)


METHODS: Final[dict[str, Callable[[Job, TiltSeries, TiltScan], Preview]]] = {
    "parallax": _parallax,
    "ssb": _ssb,
    "wdd": _wdd,
    "icom": _icom,
}
