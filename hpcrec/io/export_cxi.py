"""CXI files of a result, which are NeXus files too: ``result.cxi``, one entry a tilt, and ``volume.cxi``.

Literature: F. R. N. C. Maia, Nat. Methods 9, 854 (2012) and the CXI file format, version 1.60; NeXus classes NXentry,
NXdata, NXprocess, NXsample. SI units, energies in joule, angles in degrees with their ``units``::

    entry_N/image_1     object, complex (slice, y, x)       entry_N/image_2   phase, rad, unwrapped sum (y, x)
    entry_N/image_3     phase of each slice (slice, y, x)   entry_N/image_4   amplitude (y, x)
    entry_N/image_5     probe modes, complex (mode, y, x)
    entry_N/sample_1    geometry_1/translation (position, 3) = (x, y, 0), rotation_angle
    entry_N/instrument_1/source_1   energy, wavelength      entry_N/process_1   program, engine, iterations

``image_size`` is the whole image's size (x, y[, z]), as CXI has it; the axes of NXdata hold the place of each pixel.
The sign of the translation is that of ``hpcrec/io/cxi.py`` for a detector without basis vectors, x right and y down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from scipy import constants

from hpcrec import __version__
from hpcrec.backend.array import Array
from hpcrec.io.export import ExportedTilt
from hpcrec.io.results import VolumeResult
from hpcrec.io.store import create_exchange_hdf5

_METRE: Final = 1e-10
_CXI_VERSION: Final = 160


def write_tilts(out: Path, tilts: Iterable[ExportedTilt]) -> list[Path]:
    """Write ``result.cxi``; return its path in a list."""
    target = out / "result.cxi"
    with create_exchange_hdf5(target) as file:
        count = 0
        for count, tilt in enumerate(tilts, 1):
            _write_tilt(_entry(file, count), tilt)
        _header(file, count)
    return [target]


def write_volume(out: Path, volume: VolumeResult) -> Path:
    """Write ``volume.cxi``; return its path."""
    target, side = out / "volume.cxi", volume.voxel_size
    unit = str(volume.attributes.get("unit", ""))
    with create_exchange_hdf5(target) as file:
        entry = _entry(file, 1)
        _image(entry, 1, "volume", volume.volume, unit, {"z": side, "y": side, "x": side})
        _process(entry, {name: str(volume.attributes[name]) for name in ("solver",) if name in volume.attributes})
        _header(file, 1)
    return target


def _header(file: h5py.File, count: int) -> None:
    file["cxi_version"], file["number_of_entries"] = _CXI_VERSION, count
    file.attrs["default"] = "entry_1"


def _entry(file: h5py.File, number: int) -> h5py.Group:
    entry = _group(file, f"entry_{number}", "NXentry")
    entry.attrs["default"] = "image_1"
    return entry


def _write_tilt(entry: h5py.Group, tilt: ExportedTilt) -> None:
    result = tilt.result
    pixel = {"y": result.sampling[0], "x": result.sampling[1]}
    deep = {"slice": result.slice_thickness or 1.0, **pixel}
    corner = {"y": result.origin[0], "x": result.origin[1]}
    entry["title"] = tilt.name
    _image(entry, 1, "object", tilt.obj, "", deep, corner)
    _image(entry, 2, "phase", tilt.phase, "rad", pixel, corner)
    _image(entry, 3, "phase of each slice", tilt.slice_phases, "rad", deep, corner)
    _image(entry, 4, "amplitude", tilt.amplitude, "", pixel, corner)
    _image(entry, 5, "probe", result.probe, "", {"mode": 0.0, **pixel})
    sample = _group(entry, "sample_1", "NXsample")
    _quantity(sample, "rotation_angle", result.tilt_deg, "deg")
    moved = np.zeros((len(result.positions), 3))
    moved[:, :2] = result.positions[:, ::-1] * _METRE
    _quantity(_group(sample, "geometry_1", "NXcollection"), "translation", moved, "m")
    instrument = _group(entry, "instrument_1", "NXinstrument")
    if result.energy_ev is not None and result.wavelength is not None:
        source = _group(instrument, "source_1", "NXsource")
        _quantity(source, "energy", result.energy_ev * constants.e, "J")
        _quantity(source, "wavelength", result.wavelength * _METRE, "m")
    last = result.data_error[-1] if len(result.data_error) else np.nan
    _process(entry, {"engine": result.engine, "iterations": result.iterations, "data_error": float(last)})


def _image(
    entry: h5py.Group,
    number: int,
    title: str,
    data: Array,
    unit: str,
    pixels: Mapping[str, float],
    corner: Mapping[str, float] | None = None,
) -> None:
    """Write an image whose last axes are those of ``pixels``: their steps in Å, zero for an axis that only counts.

    ``corner`` is the place of the first pixel in Å; else the middle of the image is at zero.
    """
    image = _group(entry, f"image_{number}", "NXdata")
    image["title"], image["data_space"], image["is_fft_shifted"] = title, "real", 0
    image["dimensionality"] = sum(axis in ("x", "y", "z") for axis in pixels)
    _quantity(image, "data", data, unit)
    spatial = [axis for axis in ("x", "y", "z", "slice") if axis in pixels]
    shape = dict(zip(pixels, data.shape[-len(pixels) :], strict=True))
    _quantity(image, "image_size", np.array([shape[a] * pixels[a] * _METRE for a in spatial]), "m")
    for axis, step in pixels.items():
        n = shape[axis]
        start = (corner or {}).get(axis, 0.0 if axis in ("slice", "mode") else -(n // 2) * step)
        places = (start + step * np.arange(n)) * _METRE if step else np.arange(n)
        _quantity(image, axis, places, "m" if step else "")
    _default_plot(image, list(pixels))


def _default_plot(image: h5py.Group, axes: Sequence[str]) -> None:
    image.attrs["signal"] = "data"
    image.attrs["axes"] = axes
    for i, axis in enumerate(axes):
        image.attrs[f"{axis}_indices"] = i


def _process(entry: h5py.Group, values: Mapping[str, Any]) -> None:
    process = _group(entry, "process_1", "NXprocess")
    for name, value in {"program": "hpcrec", "version": __version__, **values}.items():
        process[name] = value


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = kind
    return group


def _quantity(group: h5py.Group, name: str, value: Any, unit: str) -> None:
    node = group.create_dataset(name, data=value)
    if unit:
        node.attrs["units"] = unit
