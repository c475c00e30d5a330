"""The results of a run, and the documentation of their files.

``checkpoints/tilt_0017.h5``: one reconstructed tilt, a record (``io/store.py``: ``sha256`` guards it)
    attributes  format = "hpcrec-tilt", format_version = 1; tilt_index (in the input file), tilt_deg (nominal),
                sampling_angstrom (dy, dx), origin_angstrom (y, x) of the centre of object pixel [0, 0],
                slice_thickness_angstrom, engine, iterations, seconds; energy_ev, wavelength_angstrom where known
    object            (slice, y, x) complex64   transmission; its phase is σ times the projected potential;
                                                complex128 where the job asked for double precision
    probe             (mode, y, x) complex64    the same; centred at n//2; |probe|² sums to the counts of a pattern
    positions_angstrom (position, 2) float64    refined, (y, x)
    illumination      (y, x) float32            Σ|probe|² seen by each object pixel: where the object can be trusted
    loss, data_error  (iteration,) float64
    refined/          what was refined beside: tilt, position_tilt (rad), thickness (Å), aberrations (Å), variation,
                      coefficients, intensity, background, affine; shapes as in ``models/base.py``
    quality/          residual (position,) data error of each pattern; moves_angstrom (position, 2) from the given
                      positions; held_out (n,) indices of patterns no update used, held_out_error (iteration,);
                      frc (3, ring) frequency 1/Å, correlation, independent pixels of two half scans, where made
    Of a large object in tiles each rank writes its own to ``tilt_0017.TOKEN-0003.h5`` beside it, a record with
    ``format = "hpcrec-tilt-part"`` and its ``object`` (slice, y, x); ``object`` is then a virtual dataset over these
    (``io/joined.py``), which belong to it. Its checksum is that of the same object in one file.

``projections.h5``: all tilts
    attributes  format = "hpcrec-projections", format_version = 1; sampling_angstrom (dy, dx), n_tilts;
                energy_ev, wavelength_angstrom where known
    tilts/0017  the record above

``volume.h5`` (and ``volume.mrc`` for viewers): a record
    attributes  format = "hpcrec-volume", format_version = 1; voxel_size_angstrom; tilt_axis_deg = a;
                centre_angstrom (y, x) of the volume's centre in the scan; solver; unit of the volume
    volume      (z, y, x) float32 with the tilt axis along y (the axis frame): r_scan = Rz(a) r_volume about the centre
    alignment/  in the frame of the scan (x right, y down): shifts_angstrom, start_shifts_angstrom and ramps
                (tilt, 2) = (y, x), rotations (tilt, 3, 3) in (x, y, z); in no frame: angles_deg (tilt, 3) about the
                beam, the tilt axis and the axis across both, R = Rz(a) Rz(in_plane) Ry(tilt) Rx(out_of_plane) Rz(−a);
                offsets, weights, residuals, mass, history
    projections/ prepared (tilt, y, x), denoised (optional), aligned, reprojected, weight, all in the axis frame;
                mass, n_residues, doubtful, tilt_deg, number (tilt,)
    halves/     even, odd (z, y, x): volumes from half of the tilts each, never denoised; axis frame
    convergence/ what the solver reported in each iteration
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import h5py
import mrcfile
import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray, all_finite
from hpcrec.errors import DataError
from hpcrec.io.atomic import atomic_path
from hpcrec.io.hdf5_access import damage_reported, open_hdf5
from hpcrec.io.joined import JoinedArray
from hpcrec.io.lazy import LazyArray
from hpcrec.io.store import (
    Attribute,
    Attributes,
    Hdf5Writer,
    StoredRecord,
    check_format,
    create_hdf5,
    open_record,
    read_file,
    read_record,
    stored_record,
)
from hpcrec.io.tilt_parts import remove_stray_parts

logger = logging.getLogger(__name__)

_TILT: Final = "hpcrec-tilt"
_PROJECTIONS: Final = "hpcrec-projections"
_VOLUME: Final = "hpcrec-volume"
_VERSION: Final = 1
# What a tilt must have, and what all tilts of a run have in common
_ARRAYS: Final = ("object", "probe", "positions_angstrom", "illumination", "loss", "data_error")
_SHARED: Final = ("sampling_angstrom", "energy_ev", "wavelength_angstrom")
_TILT_NAME: Final = re.compile(r"tilt_(\d+)\.h5")


@dataclass(frozen=True, kw_only=True)
class TiltFacts:
    """One reconstructed tilt but its object; units and shapes as in the module's description (``positions`` in Å)."""

    tilt_index: int
    tilt_deg: float
    probe: ComplexArray
    positions: FloatArray
    illumination: FloatArray
    loss: FloatArray
    data_error: FloatArray
    sampling: tuple[float, float]
    origin: tuple[float, float]
    slice_thickness: float
    engine: str
    iterations: int
    seconds: float
    energy_ev: float | None = None
    wavelength: float | None = None
    refined: Mapping[str, Array] = field(default_factory=dict)
    quality: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TiltResult(TiltFacts):
    """One reconstructed tilt with its object in memory."""

    obj: ComplexArray


@dataclass(frozen=True, kw_only=True)
class JoinedTilt(TiltFacts):
    """One reconstructed tilt whose object is in parts, written and known to be finite."""

    obj: JoinedArray


@dataclass(frozen=True, kw_only=True)
class VolumeResult:
    """A volume (z, y, x) float32, its voxel size in Å, further arrays by ``"group/name"``, and further attributes."""

    volume: FloatArray
    voxel_size: float
    arrays: Mapping[str, Array] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


def tilt_path(folder: Path, tilt_index: int) -> Path:
    """Return the path of a tilt's result in the folder of checkpoints."""
    return folder / f"tilt_{tilt_index:04d}.h5"


def write_tilt_result(path: Path, result: TiltResult | JoinedTilt) -> None:
    """Write a tilt's result atomically, then remove the parts of those before it.

    Raises :class:`StorageError`, or :class:`DataError` if it is not finite.
    """
    for name in ("probe", "positions") if isinstance(result, JoinedTilt) else ("obj", "probe", "positions"):
        if not all_finite(getattr(result, name)):
            raise DataError(f"tilt {result.tilt_index}: the reconstructed {name} is not finite; it was not written")
    with create_hdf5(path) as writer:
        arrays, attributes = _tilt_record(result)
        writer.record("/", arrays, attributes)
    remove_stray_parts(path.parent, result.tilt_index)


def read_tilt_result(path: Path) -> TiltResult:
    """Read a tilt's result; raises :class:`DataError` if it is missing, damaged or something else."""
    return _tilt_result(*read_file(path, _TILT, _VERSION, parts=True), str(path))


def tilt_number(path: Path) -> int:
    """Return the index of a tilt's result, which is read once, a block at a time; raises :class:`DataError`."""
    with open_record(path, _TILT, _VERSION, parts=True) as record:
        return _checked(record, str(path))


def assemble_projections(run_dir: Path, expected: Sequence[int] | None = None) -> Path:
    """Gather ``run_dir/checkpoints/tilt_*.h5`` into ``run_dir/projections.h5`` and return its path.

    ``expected`` names the tilts that must be there; others are then left out. No tilt is in memory as a whole.
    Raises :class:`DataError` for missing, damaged or unlike tilts, :class:`StorageError` if it cannot be written.
    """
    found = {int(m[1]): p for p in (run_dir / "checkpoints").glob("tilt_*.h5") if (m := _TILT_NAME.fullmatch(p.name))}
    wanted = sorted(found if expected is None else expected)
    missing = [i for i in wanted if i not in found]
    if missing or not wanted:
        which = f"tilts {missing} are" if missing else "no tilt is"
        raise DataError(f"{run_dir / 'checkpoints'}: {which} reconstructed yet; run the ptychography stage first")
    target = run_dir / "projections.h5"
    with create_hdf5(target) as writer:
        _gather(writer, [found[i] for i in wanted])
    return target


def gathered_tilts(path: Path) -> list[int]:
    """Return the numbers of the tilts in ``projections.h5`` in order; none if it is missing or damaged.

    Every tilt is read: it is cheap to gather them again, and a stage that fails on a damaged one would fail for ever.
    """
    if not path.exists():
        return []
    try:
        with ProjectionStore(path) as store:
            return [store.checked(i) for i in range(store.n_tilts)]
    except DataError as fault:
        logger.warning("projections are gathered anew: %s", fault)
        return []


def _gather(writer: Hdf5Writer, paths: list[Path]) -> None:
    common: dict[str, Any] = {}
    for path in paths:
        with open_record(path, _TILT, _VERSION, parts=True) as record:
            number = _checked(record, str(path))
            shared: dict[str, Any] = {k: record.attributes[k] for k in _SHARED if k in record.attributes}
            if common and any(not np.allclose(shared.get(k, 0), common[k], rtol=1e-9) for k in common):
                raise DataError(
                    f"{path}: has sampling or energy {shared}, the tilts before it {common}; do not mix runs"
                )
            common = common or shared
            writer.copy(f"tilts/{number:04d}", record)
    header = {"format": _PROJECTIONS, "format_version": _VERSION, "n_tilts": len(paths), **common}
    writer.attributes("/", header)


def _checked(record: StoredRecord, where: str) -> int:
    """Return the index of a tilt that has all that it should have."""
    missing = [name for name in _ARRAYS if name not in record.arrays]
    missing += [name for name in ("tilt_index", *_SHARED[:1]) if name not in record.attributes]
    if missing:
        raise DataError(f"{where}: lacks {missing[0]!r}; it is not a tilt written by this program")
    return int(np.asarray(record.attributes["tilt_index"]))


def _shared_attributes(result: TiltFacts) -> dict[str, Attribute]:
    beam = {"energy_ev": result.energy_ev, "wavelength_angstrom": result.wavelength}
    return {"sampling_angstrom": result.sampling, **{k: v for k, v in beam.items() if v is not None}}


def _tilt_record(result: TiltResult | JoinedTilt) -> tuple[dict[str, Array | LazyArray], dict[str, Attribute]]:
    arrays: dict[str, Array | LazyArray] = {
        "object": result.obj,
        "probe": result.probe,
        "positions_angstrom": np.asarray(result.positions, np.float64),
        "illumination": result.illumination.astype(np.float32, copy=False),
        "loss": np.asarray(result.loss, np.float64),
        "data_error": np.asarray(result.data_error, np.float64),
        **{f"refined/{name}": np.asarray(values) for name, values in result.refined.items()},
        **{f"quality/{name}": np.asarray(values) for name, values in result.quality.items()},
    }
    attributes: dict[str, Attribute] = {
        "format": _TILT,
        "format_version": _VERSION,
        "tilt_index": result.tilt_index,
        "tilt_deg": result.tilt_deg,
        "origin_angstrom": result.origin,
        "slice_thickness_angstrom": result.slice_thickness,
        "engine": result.engine,
        "iterations": result.iterations,
        "seconds": result.seconds,
        **_shared_attributes(result),
    }
    return arrays, attributes


def _tilt_result(arrays: dict[str, Array], attributes: Mapping[str, Any], where: str) -> TiltResult:
    try:
        return TiltResult(
            tilt_index=int(attributes["tilt_index"]),
            tilt_deg=float(attributes["tilt_deg"]),
            obj=arrays["object"],
            probe=arrays["probe"],
            positions=arrays["positions_angstrom"],
            illumination=arrays["illumination"],
            loss=arrays["loss"],
            data_error=arrays["data_error"],
            sampling=_pair(attributes["sampling_angstrom"]),
            origin=_pair(attributes["origin_angstrom"]),
            slice_thickness=float(attributes["slice_thickness_angstrom"]),
            engine=str(attributes["engine"]),
            iterations=int(attributes["iterations"]),
            seconds=float(attributes["seconds"]),
            energy_ev=_optional(attributes.get("energy_ev")),
            wavelength=_optional(attributes.get("wavelength_angstrom")),
            refined={k.removeprefix("refined/"): v for k, v in arrays.items() if k.startswith("refined/")},
            quality={k.removeprefix("quality/"): v for k, v in arrays.items() if k.startswith("quality/")},
        )
    except KeyError as fault:
        raise DataError(f"{where}: lacks {fault}; it is not a tilt written by this program") from fault


def _pair(value: Any) -> tuple[float, float]:
    return float(value[0]), float(value[1])


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


class ProjectionStore:
    """``projections.h5`` opened for reading; tilts are read, and their checksums tested, when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File = open_hdf5(path)
        try:
            check_format(self._file, path, _PROJECTIONS, _VERSION)
            with damage_reported(str(path), "assemble the projections again"):
                self._read_header()
        except DataError:
            self.close()
            raise

    def _read_header(self) -> None:
        header = self._file.attrs
        self.sampling = _pair(header["sampling_angstrom"])
        self.energy_ev = _optional(header.get("energy_ev"))
        self.wavelength = _optional(header.get("wavelength_angstrom"))
        self._names = sorted(self._file["tilts"])
        tilts = [self._file["tilts"][name].attrs for name in self._names]
        self.tilt_indices: IntArray = np.array([int(tilt["tilt_index"]) for tilt in tilts], np.int64)
        self.tilt_angles: FloatArray = np.deg2rad([float(tilt["tilt_deg"]) for tilt in tilts])

    @property
    def n_tilts(self) -> int:
        """How many tilts the store holds."""
        return len(self._names)

    def tilt(self, i_tilt: int) -> TiltResult:
        """Read tilt ``i_tilt`` (counted in the store); raises :class:`DataError` if it is damaged."""
        if not 0 <= i_tilt < self.n_tilts:
            raise DataError(f"{self.path}: tilt {i_tilt} was asked for, but there are {self.n_tilts} tilts")
        where = f"{self.path}: tilts/{self._names[i_tilt]}"
        return _tilt_result(*read_record(self._file["tilts"][self._names[i_tilt]], where), where)

    def checked(self, i_tilt: int) -> int:
        """Return the index of a tilt in its input file, read once, a block at a time; raises :class:`DataError`."""
        where = f"{self.path}: tilts/{self._names[i_tilt]}"
        return _checked(stored_record(self._file["tilts"][self._names[i_tilt]], where), where)

    def __iter__(self) -> Iterator[TiltResult]:
        return (self.tilt(i) for i in range(self.n_tilts))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def write_volume(path: Path, result: VolumeResult, *, mrc: bool = True) -> None:
    """Write ``volume.h5``, and beside it an ``.mrc`` of the same name, each atomically.

    Raises :class:`StorageError`, or :class:`DataError` if the volume is not finite.
    """
    if not np.isfinite(result.volume).all():
        raise DataError(f"{path}: the volume is not finite; it was not written")
    volume = np.ascontiguousarray(result.volume, np.float32)
    fixed: Attributes = {"format": _VOLUME, "format_version": _VERSION, "voxel_size_angstrom": result.voxel_size}
    with create_hdf5(path) as writer:
        writer.record("/", {**result.arrays, "volume": volume}, {**result.attributes, **fixed})
    if mrc:
        write_mrc(path.with_suffix(".mrc"), volume, result.voxel_size)


def write_mrc(path: Path, volume: FloatArray, voxel_size: float) -> None:
    """Write a volume (z, y, x) as MRC2014 (Cheng et al., J. Struct. Biol. 192, 146 (2015)) with its voxel size in Å."""
    with atomic_path(path) as temporary, mrcfile.new(temporary, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(volume, np.float32))
        file.voxel_size = voxel_size


def read_volume(path: Path) -> VolumeResult:
    """Read ``volume.h5``; raises :class:`DataError` if it is missing, damaged or something else."""
    arrays, attributes = read_file(path, _VOLUME, _VERSION)
    if "volume" not in arrays or "voxel_size_angstrom" not in attributes:
        raise DataError(f"{path}: lacks the volume or its voxel size; it was not written by this program")
    volume, voxel_size = arrays.pop("volume"), attributes["voxel_size_angstrom"]
    rest = {k: v for k, v in attributes.items() if k not in ("format", "format_version", "voxel_size_angstrom")}
    return VolumeResult(volume=volume, voxel_size=float(np.asarray(voxel_size)), arrays=arrays, attributes=rest)
