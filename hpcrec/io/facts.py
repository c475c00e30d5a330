"""What a file says of itself, and how that and the job's options become one answer.

A reader collects :class:`FileFacts`; :func:`fill_in` puts them where the job left an option open. Where both say
something and they differ by more than a per cent the file or the job is wrong, and only a person knows which.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from hpcrec.backend.array import BoolArray, ComplexArray, FloatArray
from hpcrec.data.preprocess import binned_shape
from hpcrec.errors import DataError
from hpcrec.io.base import SeriesOptions
from hpcrec.physics.beam import electron_beam, photon_beam

T = TypeVar("T", bound=SeriesOptions)

PIXEL_KEYS: Final = ("detector_pixel_inverse_angstrom", "detector_pixel_mrad", "pixel_size_angstrom")
_TOLERANCE: Final = 0.01
_ROUND_OFF: Final = 1e-6  # pixels: 4.0 that came out of metres is pixel 4


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a file says of itself, in the package's units; None where it is silent.

    ``energy_ev``; ``detector_pixel_inverse_angstrom`` or ``detector_pixel_mrad`` of the frames as stored;
    ``centre_pixel`` (row, column) of the zero frequency; ``scan_shape`` (rows, columns); ``scan_step`` (y, x) Å;
    ``positions`` (position, 2) Å, (y, x); ``mask`` (rows, columns), True = good; ``probe`` (mode, y, x).
    """

    energy_ev: float | None = None
    detector_pixel_inverse_angstrom: float | None = None
    detector_pixel_mrad: float | None = None
    centre_pixel: tuple[int, int] | None = None
    scan_shape: tuple[int, int] | None = None
    scan_step: tuple[float, float] | None = None
    positions: FloatArray | None = None
    mask: BoolArray | None = None
    probe: ComplexArray | None = None


def fill_in(given: T, facts: FileFacts, frame_shape: tuple[int, int]) -> T:
    """Return the options with what the file says where the job says nothing; numbers must be numbers by now.

    ``frame_shape`` (rows, columns) as stored. Raises :class:`DataError` naming both values where they contradict.
    """
    energy = agreed(given.path, "energy_ev", _number(given.energy_ev), facts.energy_ev, "energy")
    given = dataclasses.replace(given, energy_ev=energy)
    given = _with_pixel(given, facts, frame_shape)
    if facts.centre_pixel is not None and given.zero_frequency == "center":
        given = _with_centre(given, facts.centre_pixel, frame_shape)
    if facts.scan_step is not None:
        asked = given.scan_step_angstrom or (None, None)
        pairs = zip(("y", "x"), asked, facts.scan_step, strict=True)
        y, x = (agreed(given.path, f"scan_step_angstrom along {axis}", a, f, "scan_step") for axis, a, f in pairs)
        given = dataclasses.replace(given, scan_step_angstrom=None if y is None or x is None else (y, x))
    return given


def agreed(path: Path, what: str, asked: float | None, found: float | None, fact: str) -> float | None:
    """Return the job's value, else the file's; raises :class:`DataError` if they differ by more than 1 %.

    ``fact`` is the name by which ``ignore_in_file`` knows it.
    """
    if asked is None or found is None:
        return found if asked is None else asked
    if abs(asked - found) > _TOLERANCE * max(abs(asked), abs(found)):
        raise contradiction(path, what, f"{asked:.6g}", f"{found:.6g}", fact)
    return asked


def contradiction(path: Path, what: str, asked: str, found: str, fact: str) -> DataError:
    """Return the error for a job and a file that say different things."""
    return DataError(
        f"{path}: {what} is {found} by the file and {asked} by the job; "
        f"remove it from the job, or set data.ignore_in_file = [{fact!r}] if the file is wrong"
    )


def _with_pixel(given: T, facts: FileFacts, frame_shape: tuple[int, int]) -> T:
    """Let the job's detector pixel, angle or real-space pixel stand if it agrees with the file's."""
    found: dict[str, Any] = {key: getattr(facts, key) for key in PIXEL_KEYS[:2]}
    present = [key for key in PIXEL_KEYS if getattr(given, key) is not None]
    known = [key for key, value in found.items() if value is not None]
    if not present and known:
        return dataclasses.replace(given, **{known[0]: found[known[0]]})
    if len(present) == 1 and known:
        what = f"the detector pixel in 1/Å (from {present[0]} in the job)"
        for axis in (0, 1):  # one size of real-space pixels means detector pixels that differ where sides differ
            asked = _frequency(given, present[0], _number(getattr(given, present[0])), frame_shape, axis)
            stored = _frequency(given, known[0], found[known[0]], frame_shape, axis)
            agreed(given.path, what, asked, stored, "detector_pixel")
    return given


def _frequency(
    given: SeriesOptions, key: str, value: float | None, frame_shape: tuple[int, int], axis: int
) -> float | None:
    """Return the detector pixel in 1/Å along an axis that a value of ``key`` means; None where no energy is known."""
    if value is None or value <= 0 or key == "detector_pixel_inverse_angstrom":
        return value
    if key == "pixel_size_angstrom":
        window = given.window or binned_shape(frame_shape, given.transpose, given.bin_detector)
        n = window if isinstance(window, int) else window[axis]
        return 1 / (n * value * given.bin_detector)
    energy = _number(given.energy_ev)
    if energy is None:
        return None
    beam = electron_beam(energy) if given.radiation == "electron" else photon_beam(energy)
    return value * 1e-3 / beam.wavelength


def _with_centre(given: T, found: tuple[int, int], frame_shape: tuple[int, int]) -> T:
    if not all(0 <= c < n for c, n in zip(found, frame_shape)):
        raise DataError(
            f"{given.path}: the file has the beam's centre at {list(found)}, outside its frames of {frame_shape[0]}×"
            f"{frame_shape[1]} pixels; set data.ignore_in_file = ['centre'], and data.centre_pixel if need be"
        )
    asked = given.centre_pixel
    if asked is None:
        return dataclasses.replace(given, centre_pixel=found)
    if any(abs(a - f) > max(1, _TOLERANCE * n) for a, f, n in zip(asked, found, frame_shape)):
        raise contradiction(given.path, "centre_pixel", f"{list(asked)}", f"{list(found)}", "centre")
    return given


def _number(value: float | str | None) -> float | None:
    assert not isinstance(value, str)
    return value


def without(facts: FileFacts, ignored: list[str]) -> FileFacts:
    """Return the facts without those that the job does not believe."""
    fields: dict[str, tuple[str, ...]] = {
        "energy": ("energy_ev",),
        "detector_pixel": ("detector_pixel_inverse_angstrom", "detector_pixel_mrad"),
        "centre": ("centre_pixel",),
        "scan_shape": ("scan_shape",),
        "scan_step": ("scan_step",),
        "positions": ("positions",),
        "mask": ("mask",),
        "probe": ("probe",),
    }
    gone: dict[str, Any] = {field: None for name in ignored for field in fields[name]}
    return dataclasses.replace(facts, **gone)


def differing_fact(first: FileFacts, other: FileFacts) -> str | None:
    """Return the name of the first fact in which two tilts of a series differ, or None.

    Only what a series must share counts: energy and detector pixel, within 1 %; the centre, within the one pixel that
    rounding may move it; the shape of the scan.
    """
    bounds = {"energy_ev": (_TOLERANCE, 0), "centre_pixel": (0, 1), "scan_shape": (0, 0)}
    bounds |= dict.fromkeys(PIXEL_KEYS[:2], (_TOLERANCE, 0))
    for name, (relative, absolute) in bounds.items():
        a, b = getattr(first, name), getattr(other, name)
        if (a is None) != (b is None) or (a is not None and not np.allclose(a, b, rtol=relative, atol=absolute)):
            return name
    return None


def pixel_hit(y: float, x: float) -> tuple[int, int] | None:
    """Return the pixel (row, column) that holds a place counted in pixels from the detector's corner, None for NaN."""
    if not np.isfinite([y, x]).all():
        return None
    return math.floor(y + _ROUND_OFF), math.floor(x + _ROUND_OFF)
