"""TIFF images of a result: OME-TIFF with the pixel size in Å, and the resolution tags of plain TIFF beside it.

Of each tilt ``…_phase.tif``, ``…_amplitude.tif``, ``…_probe.tif`` (intensity and phase of each mode) and, of several
slices, ``…_slices.tif``; ``volume.tif`` with the voxel size in three directions. All are float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile

from hpcrec.backend.array import FloatArray
from hpcrec.io.atomic import atomic_path
from hpcrec.io.export import ExportedTilt
from hpcrec.io.results import VolumeResult

_PER_CENTIMETRE: Final = 1e8  # Å in a centimetre
_LARGEST: Final = 2**32 - 1  # of a rational number in a TIFF tag


def write_tilts(out: Path, tilts: Iterable[ExportedTilt]) -> list[Path]:
    """Write the images of all tilts; return the files."""
    files = []
    for tilt in tilts:
        pixel, slices = tilt.result.sampling, tilt.slice_phases
        probe = tilt.result.probe
        modes = np.stack([np.abs(probe) ** 2, np.angle(probe)], axis=1)
        images: list[tuple[str, FloatArray, str, float | None]] = [
            ("phase", tilt.phase, "YX", None),
            ("amplitude", tilt.amplitude, "YX", None),
            ("probe", modes, "TCYX", None),
        ]
        if len(slices) > 1:
            images.append(("slices", slices, "ZYX", tilt.result.slice_thickness))
        for name, image, axes, depth in images:
            files.append(out / f"{tilt.name}_{name}.tif")
            write_image(files[-1], image, axes, pixel, depth)
    return files


def write_volume(out: Path, volume: VolumeResult) -> Path:
    """Write the volume (z, y, x) as a stack; return its path."""
    side = volume.voxel_size
    write_image(out / "volume.tif", volume.volume, "ZYX", (side, side), side)
    return out / "volume.tif"


def write_image(path: Path, image: FloatArray, axes: str, pixel: tuple[float, float], depth: float | None) -> None:
    """Write one image or stack; ``pixel`` (dy, dx) and ``depth`` between planes in Å. Raises :class:`StorageError`."""
    metadata: dict[str, Any] = {"axes": axes, "Name": path.stem}
    sizes = {"Y": pixel[0], "X": pixel[1], **({"Z": depth} if depth else {})}
    for axis, size in sizes.items():
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "Å"}
    density = (_PER_CENTIMETRE / pixel[1], _PER_CENTIMETRE / pixel[0])
    tags: dict[str, Any] = {"resolution": density, "resolutionunit": "CENTIMETER"} if max(density) < _LARGEST else {}
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, np.asarray(image, np.float32), ome=True, photometric="minisblack", metadata=metadata, **tags
        )
