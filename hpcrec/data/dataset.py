"""What the rest of the package sees of measured data: a series of tilts, each a scan of diffraction patterns.

Patterns stay where they are until asked for. Whatever the file's layout, units and orientation were, here they are
ångström, radians and counts, with the zero frequency at [0, 0].
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray
from hpcrec.data.preprocess import DetectorFrame, count_fault
from hpcrec.errors import DataError

_SAMPLE_BYTES: Final = 1 << 20
_SAMPLES: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Which file the data came from: what provenance keeps and what decides whether a result is stale.

    ``path`` resolved; ``size`` in bytes; ``modified_ns`` since the epoch; ``digest`` is ``"sha256:…"`` of the whole
    file, or ``"sha256-sampled:…"`` of its size and 16 blocks of 1 MiB (fewer, where files are many) spread from the
    first byte to the last; ``"sha256-folder:…"`` of the names and sizes of all files in a folder (Zarr), and of its
    metadata; ``"sha256-files:…"`` of the digests of several files.
    """

    path: Path
    size: int
    modified_ns: int
    digest: str


def file_identity(path: Path, n_samples: int = _SAMPLES) -> Identity:
    """Return the identity of a file; above ``n_samples`` MiB it is hashed by so many samples, in constant time.

    Raises :class:`DataError` if the file cannot be read.
    """
    if path.is_dir():
        return _folder_identity(path)
    try:
        stat = path.stat()
        with path.open("rb") as stream:
            whole = stat.st_size <= n_samples * _SAMPLE_BYTES
            last = max(stat.st_size - _SAMPLE_BYTES, 0)
            starts = [0] if whole else [i * last // (n_samples - 1) for i in range(n_samples)]
            length = stat.st_size if whole else _SAMPLE_BYTES
            digest = hashlib.sha256() if whole else hashlib.sha256(str(stat.st_size).encode())
            for start in starts:
                stream.seek(start)
                digest.update(stream.read(length))
    except OSError as fault:
        raise DataError(
            f"{path}: cannot be read ({fault.strerror or fault}); check the path and permissions"
        ) from fault
    kind = "sha256" if whole else "sha256-sampled"
    return Identity(
        path=path.resolve(), size=stat.st_size, modified_ns=stat.st_mtime_ns, digest=f"{kind}:{digest.hexdigest()}"
    )


def joint_identity(path: Path, paths: Sequence[Path]) -> Identity:
    """Return the identity of all files that were read, ``path`` their name; that of the file itself if it is alone.

    The more files, the fewer samples of each: detectors write a measurement into hundreds, and every rank asks.
    Raises :class:`DataError` as :func:`file_identity`.
    """
    distinct = list(dict.fromkeys(paths))
    parts = [file_identity(p, max(_SAMPLES // len(distinct), 2)) for p in distinct]
    if len(parts) == 1:
        return parts[0]
    digest = hashlib.sha256("\n".join(part.digest for part in parts).encode()).hexdigest()
    return Identity(
        path=path.resolve(),
        size=sum(part.size for part in parts),
        modified_ns=max(part.modified_ns for part in parts),
        digest=f"sha256-files:{digest}",
    )


def _folder_identity(path: Path) -> Identity:
    """Return the identity of a folder of many files; only its metadata are read."""
    digest, size, modified = hashlib.sha256(), 0, 0
    try:
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            stat = file.stat()
            digest.update(f"{file.relative_to(path)} {stat.st_size}\n".encode())
            if file.name.startswith(".z") or file.suffix == ".json":
                digest.update(file.read_bytes())
            size, modified = size + stat.st_size, max(modified, stat.st_mtime_ns)
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror or fault}); check permissions") from fault
    return Identity(path=path.resolve(), size=size, modified_ns=modified, digest=f"sha256-folder:{digest.hexdigest()}")


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """All that is known of a tilt series without reading a pattern.

    ``tilt_angles`` (tilt,) rad and ``tilt_numbers`` (tilt,) indices in the file, of the tilts kept;
    ``positions`` one array (position, 2) float64 Å, (y, x), per kept tilt; ``frame`` what is done to each pattern;
    ``dtype`` of the patterns as returned; ``sampling`` (dy, dx) Å of the probe's window; ``mask`` (ky, kx), zero
    frequency at [0, 0], True = good, or None; ``raw_mask`` the same on the detector as stored; ``probe``
    (mode, y, x) centred at n//2, or None; ``energy_ev`` and ``wavelength`` (Å) where the file or its options give them;
    ``from_file`` the options that the job left open and the file answered.
    """

    tilt_angles: FloatArray
    tilt_numbers: IntArray
    positions: tuple[FloatArray, ...]
    frame: DetectorFrame
    dtype: np.dtype[np.generic]
    sampling: tuple[float, float]
    mask: BoolArray | None
    raw_mask: BoolArray | None
    probe: ComplexArray | None
    energy_ev: float | None
    wavelength: float | None
    identity: Identity
    from_file: tuple[str, ...] = ()


class TiltSeries(ABC):
    """A series of tilts in one file; readers in ``io`` supply :meth:`read_frames` and :meth:`close`."""

    def __init__(self, facts: SeriesFacts) -> None:
        self.facts = facts

    @property
    def n_tilts(self) -> int:
        """How many tilts are kept."""
        return len(self.facts.tilt_angles)

    @property
    def tilt_angles(self) -> FloatArray:
        """Nominal angles of the kept tilts, (tilt,) rad."""
        return self.facts.tilt_angles

    @property
    def tilt_numbers(self) -> IntArray:
        """Index of each kept tilt in the file, (tilt,)."""
        return self.facts.tilt_numbers

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """Shape (ky, kx) of the patterns as returned, which is the shape of the probe's window too."""
        return self.facts.frame.shape

    @property
    def sampling(self) -> tuple[float, float]:
        """Real-space pixel (dy, dx) of the probe's window in Å."""
        return self.facts.sampling

    @property
    def detector_sampling(self) -> tuple[float, float]:
        """Detector pixel (dky, dkx) of the patterns as returned, in 1/Å: 1 / (n · sampling)."""
        shape, sampling = self.pattern_shape, self.sampling
        return 1 / (shape[0] * sampling[0]), 1 / (shape[1] * sampling[1])

    @property
    def mask(self) -> BoolArray | None:
        """Good pixels (ky, kx) with the zero frequency at [0, 0]; None if all are good."""
        return self.facts.mask

    @property
    def probe(self) -> ComplexArray | None:
        """The start probe (mode, y, x) that the file brings, or None."""
        return self.facts.probe

    @property
    def energy_ev(self) -> float | None:
        """Energy of the beam where the file or its options give it."""
        return self.facts.energy_ev

    @property
    def wavelength(self) -> float | None:
        """Wavelength of the beam in Å where the energy is known."""
        return self.facts.wavelength

    @property
    def identity(self) -> Identity:
        """Which file this is."""
        return self.facts.identity

    def tilt(self, i_tilt: int) -> TiltScan:
        """Return the scan of kept tilt ``i_tilt``."""
        if not 0 <= i_tilt < self.n_tilts:
            raise DataError(f"{self.identity.path}: tilt {i_tilt} was asked for, but there are {self.n_tilts} tilts")
        return TiltScan(self, i_tilt)

    @abstractmethod
    def read_frames(self, tilt_number: int, indices: IntArray) -> Array:
        """Return the patterns (n, rows, columns) exactly as stored, in the order of ``indices``, native byte order."""

    def read_frame_masks(self, tilt_number: int, indices: IntArray) -> BoolArray | None:
        """Return the masks (n, rows, columns) of the frames, True = good, as stored; None if one mask serves all."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the file; reading afterwards is an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def unsigned(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Return the type of integers of the same size without a sign; other types as they are."""
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "i" else dtype


class TiltScan:
    """The patterns of one tilt, read only when asked for."""

    def __init__(self, series: TiltSeries, i_tilt: int) -> None:
        self._series = series
        self.i_tilt = i_tilt
        self.number = int(series.tilt_numbers[i_tilt])
        self.angle = float(series.tilt_angles[i_tilt])
        self.positions: FloatArray = series.facts.positions[i_tilt]

    @property
    def n_positions(self) -> int:
        """How many patterns the tilt has."""
        return len(self.positions)

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """Shape (ky, kx) of a pattern."""
        return self._series.pattern_shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the patterns: the detector's own, wider only if pixels are binned; integers without their sign."""
        return unsigned(self._series.facts.dtype)

    @property
    def mask(self) -> BoolArray | None:
        """Good pixels (ky, kx), True = good; None if all are good."""
        return self._series.mask

    @property
    def sampling(self) -> tuple[float, float]:
        """Real-space pixel (dy, dx) of the probe's window in Å."""
        return self._series.sampling

    def read(self, indices: IntArray) -> Array:
        """Return patterns (n, ky, kx) in counts, zero frequency at [0, 0], in the order of ``indices``.

        Bad pixels are zero. Raises :class:`DataError` naming tilt and position where a good pixel is negative or not
        a finite number, or an index is outside the scan.
        """
        indices = np.asarray(indices, dtype=np.int64).ravel()
        facts = self._series.facts
        if len(indices) == 0:
            return np.zeros((0, *self.pattern_shape), self.dtype)
        if indices.min() < 0 or indices.max() >= self.n_positions:
            raise DataError(
                f"{facts.identity.path}: tilt {self.number} has positions 0…{self.n_positions - 1}, "
                f"asked for {indices.min()}…{indices.max()}"
            )
        frames = self._series.read_frames(self.number, indices)
        masks = self._series.read_frame_masks(self.number, indices)
        if masks is not None:
            frames[~masks] = 0
        frames = facts.frame.clean(frames, facts.raw_mask)
        fault = count_fault(frames)
        if fault is not None:
            i_frame, text = fault
            raise DataError(
                f"{facts.identity.path}: tilt {self.number}, position {indices[i_frame]}: {text}; mask such pixels, "
                "set clip_negative for background-subtracted counts, or drop the tilt"
            )
        patterns = facts.frame.apply(frames)
        # No count is negative by now, so that these are the same bits; kernels take them as they are
        return patterns.view(self.dtype)

    def read_good(self, indices: IntArray) -> BoolArray | None:
        """Return the good pixels (n, ky, kx) of patterns whose masks differ from frame to frame; None if one serves."""
        masks = self._series.read_frame_masks(self.number, np.asarray(indices, dtype=np.int64).ravel())
        return None if masks is None else self._series.facts.frame.apply_masks(masks)
