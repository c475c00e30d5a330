"""What a tilt's patterns say of lens and orientation before anything is reconstructed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hpcrec.backend.array import FloatArray
from hpcrec.data.dataset import TiltSeries
from hpcrec.direct.com import CurlEvidence, centre_of_mass, least_curl
from hpcrec.direct.lens import LensFit, fit_lens
from hpcrec.direct.orientation import turn_from_curl
from hpcrec.direct.parallax import ShiftFit, bright_field, fit_shifts
from hpcrec.errors import DataError
from hpcrec.run.job import Job
from hpcrec.run.optics import beam_of
from hpcrec.run.picks import compact_subset

MOST_POSITIONS: Final = 2500
MOST_BYTES: Final = 512 << 20
_CURL_TELLS: Final = 0.35
_LENS_TELLS: Final = 1.15
_WIDEST_PROBE: Final = 0.4  # of the window, its geometric radius


@dataclass(frozen=True, kw_only=True)
class FieldEvidence:
    """Evidence on the data as the reader gives them; keys say whether the frames are mirrored against the scan.

    ``curl``, ``shifts``, ``lens`` may be empty; ``notes`` says why.
    """

    curl: dict[bool, CurlEvidence] = field(default_factory=dict)
    shifts: dict[bool, ShiftFit] = field(default_factory=dict)
    lens: dict[bool, LensFit] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def mirrored(self) -> bool | None:
        """The handedness that the lens fit prefers, else the curl; None where neither tells."""
        if self.lens:
            best = max(self.lens, key=lambda h: self.lens[h].explained)
            if self.lens[best].explained > _LENS_TELLS * self.lens[not best].explained:
                return best
        if self.curl:
            best = min(self.curl, key=lambda h: self.curl[h].curl_share)
            if self.curl[best].curl_share < _CURL_TELLS and self.curl[not best].curl_share > _CURL_TELLS:
                return best
        return None

    def turns(self, mirrored: bool) -> list[FloatArray]:
        """Return the matrices O, up to their sign, that the evidence names for one handedness."""
        if self.mirrored not in (None, mirrored):
            return []
        found = [self.lens[mirrored].turn] if self.lens else []
        if self.curl and self.curl[mirrored].curl_share < _CURL_TELLS:
            found.append(turn_from_curl(self.curl[mirrored].angle, mirrored))
        return found


def widest_probe(series: TiltSeries, positions: FloatArray) -> float:
    """Return the largest radius (Å) that a probe may have: 40 % of its window, half of the scan."""
    window = min(n * d for n, d in zip(series.pattern_shape, series.sampling))
    return min(_WIDEST_PROBE * window, 0.5 * max(float(np.ptp(positions, axis=0).min()), 1e-3))


def field_evidence(job: Job, series: TiltSeries, i_tilt: int) -> FieldEvidence:
    """Return what curl, parallax and interference say, from up to 2500 positions in the middle of the scan.

    Empty for a near field, which has neither a bright disc nor a mean frequency.
    """
    if job.detector.field == "near":
        return FieldEvidence(notes=("near field: only reconstructions tell",))
    scan, beam = series.tilt(i_tilt), beam_of(job)
    one = int(np.prod(scan.pattern_shape)) * scan.dtype.itemsize
    subset = compact_subset(scan.positions, min(scan.n_positions, MOST_POSITIONS, max(MOST_BYTES // one, 16)))
    patterns, positions = scan.read(subset), scan.positions[subset]
    mean = centre_of_mass(patterns, series.detector_sampling, scan.mask)
    curl = {False: least_curl(positions, mean), True: least_curl(positions, mean[:, ::-1])}
    if beam is None or job.probe.source != "aperture" or job.probe.semiangle_mrad is None:
        return FieldEvidence(curl=curl, notes=("no aperture is given: no parallax",))
    reach = widest_probe(series, positions)
    radius = job.probe.semiangle_mrad * 1e-3 / beam.wavelength
    try:
        seen = bright_field(patterns, series.detector_sampling, scan.mask)
        shifts = fit_shifts(positions, seen, reach)
    except DataError as fault:
        return FieldEvidence(curl=curl, notes=(f"no parallax: {fault}",))
    largest = reach / (radius * beam.wavelength)
    lens = {h: fit_lens(positions, seen, beam.wavelength, shifts[h], largest, radius=radius) for h in (False, True)}
    return FieldEvidence(curl=curl, shifts=shifts, lens=lens)
