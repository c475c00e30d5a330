"""A run's result in the formats other programs read: the table of formats, and what is exported.

Of each tilt: the unwrapped phase summed over slices (and of each slice where there are several), the amplitude of all
slices together, the probe modes and the positions; of the run: the volume. Every file carries pixel sizes in fields of
its own format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray
from hpcrec.errors import ConfigError
from hpcrec.io.atomic import storage_error
from hpcrec.io.results import ProjectionStore, TiltResult, VolumeResult, read_volume
from hpcrec.tomography.prepare import PrepareOptions, prepare_projection

EXPORTS: Final[dict[str, str]] = {
    "cxi": "hpcrec.io.export_cxi",
    "tiff": "hpcrec.io.export_tiff",
    "mrc": "hpcrec.io.export_mrc",
}


@dataclass(frozen=True, kw_only=True)
class ExportedTilt:
    """What is exported of one tilt.

    ``phase`` (y, x) float32 rad, the unwrapped sum over slices; ``slice_phases`` (slice, y, x) float32 rad, one slice
    where there is but one; ``amplitude`` (y, x) float32, the product of all slices'; ``result`` all the rest.
    """

    phase: FloatArray
    slice_phases: FloatArray
    amplitude: FloatArray
    result: TiltResult

    @property
    def name(self) -> str:
        """The tilt's name in file names: ``tilt_0017``."""
        return f"tilt_{self.result.tilt_index:04d}"

    @property
    def obj(self) -> ComplexArray:
        """The object (slice, y, x)."""
        return self.result.obj


TiltWriter: TypeAlias = Callable[[Path, Iterable[ExportedTilt]], list[Path]]
VolumeWriter: TypeAlias = Callable[[Path, VolumeResult], Path]


def export_run(
    projections: Path, volume: Path, out: Path, file_format: str, prepare: PrepareOptions | None
) -> list[Path]:
    """Write a run's projections, and its volume if there is one, to folder ``out``; return the files.

    ``prepare`` is how phases are made for tomography; None leaves the plane that ptychography cannot know as it is.
    Raises :class:`ConfigError` for an unknown format, :class:`DataError` for damaged results, :class:`StorageError`.
    """
    if file_format not in EXPORTS:
        raise ConfigError(f"--format {file_format}: choose one of {', '.join(EXPORTS)}")
    module: Any = import_module(EXPORTS[file_format])
    write_tilts: TiltWriter = module.write_tilts
    write_volume: VolumeWriter = module.write_volume
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise storage_error(out, fault) from fault
    with ProjectionStore(projections) as store:
        files = write_tilts(out, exported_tilts(store, prepare))
    if volume.exists():
        files.append(write_volume(out, read_volume(volume)))
    return files


def exported_tilts(store: ProjectionStore, prepare: PrepareOptions | None) -> Iterator[ExportedTilt]:
    """Yield the tilts one by one, so that one is in memory at a time."""
    options = prepare or PrepareOptions(background="none", edge_angstrom=0.0)
    for result in store:
        yield exported_tilt(result, options)


def exported_tilt(result: TiltResult, options: PrepareOptions) -> ExportedTilt:
    """Return phase and amplitude of one tilt, zero phase where the object was not illuminated."""
    obj, illumination = result.obj, result.illumination
    phase = prepare_projection(obj, illumination, result.sampling, options).phase
    slices = [prepare_projection(obj[i : i + 1], illumination, result.sampling, options).phase for i in range(len(obj))]
    return ExportedTilt(
        phase=phase,
        slice_phases=np.stack(slices) if len(obj) > 1 else phase[None],
        amplitude=np.abs(np.prod(obj, axis=0)).astype(np.float32),
        result=result,
    )
