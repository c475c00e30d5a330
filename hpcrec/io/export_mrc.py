"""MRC stacks of a result (MRC2014: Cheng et al., J. Struct. Biol. 192, 146 (2015)), as electron tomography reads them.

``phase.mrc`` and ``amplitude.mrc`` hold all tilts (tilt, y, x), ``phase.rawtlt`` their angles in degrees, a line each;
``…_slices.mrc`` the phases of several slices, ``…_probe.mrc`` the probe modes as complex numbers; ``volume.mrc``. The
cell of the header is in Å.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from hpcrec.backend.array import Array, FloatArray
from hpcrec.errors import DataError
from hpcrec.io.atomic import atomic_path, write_bytes
from hpcrec.io.export import ExportedTilt
from hpcrec.io.results import VolumeResult, write_mrc


def write_tilts(out: Path, tilts: Iterable[ExportedTilt]) -> list[Path]:
    """Write stacks over all tilts, and slices and probe of each; return the files."""
    phases: list[FloatArray] = []
    amplitudes: list[FloatArray] = []
    angles: list[float] = []
    files: list[Path] = []
    pixel = (1.0, 1.0)
    for tilt in tilts:
        if phases and tilt.phase.shape != phases[0].shape:
            raise DataError(f"{tilt.name} has {tilt.phase.shape} pixels, the first tilt {phases[0].shape}: no stack")
        pixel = tilt.result.sampling
        phases.append(tilt.phase)
        amplitudes.append(tilt.amplitude)
        angles.append(tilt.result.tilt_deg)
        if len(tilt.slice_phases) > 1:
            files.append(out / f"{tilt.name}_slices.mrc")
            write_stack(files[-1], tilt.slice_phases, pixel, tilt.result.slice_thickness, volume=True)
        files.append(out / f"{tilt.name}_probe.mrc")
        write_stack(files[-1], tilt.result.probe.astype(np.complex64), pixel)
    stacks = [out / "phase.mrc", out / "amplitude.mrc"]
    for path, images in zip(stacks, (phases, amplitudes), strict=True):
        write_stack(path, np.stack(images), pixel)
    lines = "".join(f"{angle:.4f}\n" for angle in angles)
    write_bytes(out / "phase.rawtlt", lines.encode())
    return [*stacks, out / "phase.rawtlt", *files]


def write_volume(out: Path, volume: VolumeResult) -> Path:
    """Write the volume (z, y, x); return its path."""
    write_mrc(out / "volume.mrc", volume.volume, volume.voxel_size)
    return out / "volume.mrc"


def write_stack(
    path: Path, stack: Array, pixel: tuple[float, float], depth: float = 1.0, *, volume: bool = False
) -> None:
    """Write images (n, y, x) with their pixel (dy, dx) in Å; ``depth`` Å between planes of a ``volume``.

    Raises :class:`StorageError`.
    """
    with atomic_path(path) as temporary, mrcfile.new(temporary, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(stack))
        if volume:
            file.set_volume()
        else:
            file.set_image_stack()
        size: Any = (pixel[1], pixel[0], depth)
        file.voxel_size = size
