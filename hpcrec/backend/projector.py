"""The GPU kernels of ``projector.cuh`` and ``turns.cuh``: how their arguments are laid out, and how they are started.

Arrays are float32 and live on the device; volumes are (z, y, x), images (projection, bin, y, x). All sums are gathered:
a thread owns what it writes and adds in one order, so there are no atomics and a repeated call gives the same bits. The
adjoint is the natural gather, each voxel reading its footprint. The forward way gathers too: for poses about y alone a
pixel walks the strip of voxels that reaches it; for others a warp owns a tile of 32 × 32 pixels in shared memory, each
lane the pixels of its own row v, and walks the columns of voxels above the tile.

Work of an update (a voxel in a projection) at degree 2: instructions as the assembler lists them for sm_90, of the way
that most updates take; bytes counted from the source. None of it is measured.

* about y alone, forward 17 instructions and 12 bytes from the caches, adjoint 11 and 12: lines of y lie across the
  threads, each of which sums eight numbers with weights found once. From memory: forward, what the projections do not
  share of the volume (blocks of all projections run side by side); adjoint, the volume once, as images stay in the
  second cache; both ways 8 bytes a voxel for the turned copy.
* any pose, forward some 200 instructions, 4 bytes from the caches and 24 to and from shared memory; adjoint 107, and 36
  bytes from the caches.

The NumPy twin is :func:`hpcrec.backend.kernels.projection.projection_matrix`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, FloatArray, IntArray, array_module
from hpcrec.backend.cuda import address
from hpcrec.backend.launch import launch

BORDER: Final = 2
QUADS: Final = 2
"""Times four numbers of a line that a thread sums for poses about y."""
_TILE: Final = 32
_ROW_THREADS: Final = 256
_WARPS: Final = 4
_TURN_BYTES: Final = 4 * _TILE * (_TILE + 1)
_TILE_BYTES: Final = 4 * _WARPS * (_TILE + 4) * (_TILE + 1)
# The structs Map and Way of projector.cuh, Taps of turns.cuh
MAP: Final = np.dtype([(name, np.int64, 4) for name in ("u", "v", "bin", "depth")])
WAY: Final = np.dtype(
    [("axes", np.int32, 3), ("column", np.float32, 2), ("line", np.float32, 2), ("plane", np.float32, 3)]
)
TAPS: Final = np.dtype([("left", np.int32), ("weights", np.float32, 3)])
ARGUMENTS: Final = np.dtype(
    [(name, np.uint64) for name in ("source", "target", "ranges", "maps", "ways")]
    + [(name, np.int32) for name in ("n_x", "n_y", "n_z", "width", "n_maps", "n_bins", "n_u", "n_v", "side", "lanes")]
    + [("scale", np.float32)],
    align=True,
)
TURN: Final = np.dtype(
    [(name, np.uint64) for name in ("source", "target", "ranges", "taps")]
    + [
        (name, np.int32)
        for name in ("n_rows", "n_columns", "n_along", "width", "border", "first", "planes_of_taps")
    ],
    align=True,
)  # fmt: skip
STEP: Final = np.dtype(
    [(name, np.uint64) for name in ("point", "before", "gradient", "volume", "ahead")]
    + [("n", np.int64), ("step", np.float32), ("threshold", np.float32), ("momentum", np.float32)],
    align=True,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """What the kernels know of a projector whose poses all take one way.

    affine : (projection, 4, 4) as in :mod:`hpcrec.backend.kernels.projection`
    aligned : whether :func:`hpcrec.backend.kernels.aligned.is_aligned` holds for all of them
    ranges : (z, x, 2) int32 on the device, first and one-past-last y of each column; None: all
    """

    affine: FloatArray
    aligned: bool
    degree: int
    scale: float
    volume_shape: tuple[int, int, int]
    detector_shape: tuple[int, int]
    n_bins: int
    ranges: IntArray | None

    @property
    def width(self) -> int:
        """Numbers from one line of voxels along y to the next: whole quads."""
        return -(-self.volume_shape[1] // 4) * 4

    @property
    def lanes(self) -> int:
        """Threads side by side along y that take :data:`QUADS` times four voxels each: a power of two."""
        return min(1 << max(-(-self.width // (4 * QUADS)) - 1, 0).bit_length(), _TILE)

    @property
    def stripes(self) -> int:
        """Blocks along y of the kernels for poses about y."""
        return -(-self.width // (4 * QUADS * self.lanes))


def fixed_maps(affine: FloatArray) -> Array:
    """Return maps (projection, 4, 4) as the kernels take them: :data:`MAP`, in units of 2⁻³² (pixels, bins, Å)."""
    found = np.zeros(len(affine), MAP)
    for i, name in enumerate(("u", "v", "bin", "depth")):
        found[name] = np.rint(affine[:, i] * 2.0**32)
    return found


def ways(affine: FloatArray, n_bins: int) -> Array:
    """Return how the forward way walks through the volume at each pose: :data:`WAY`.

    Planes lie across the axis that is most along the beam, so that each holds a bounded piece of a pixel's voxels;
    columns follow the axis of the two others that moves most along v.
    """
    found = np.zeros(len(affine), WAY)
    for way, a in zip(found, affine):
        minors = [abs(np.linalg.det(np.delete(a[:2, :3], axis, axis=1))) for axis in range(3)]
        plane = int(np.argmax(minors))
        column, line = sorted((axis for axis in range(3) if axis != plane), key=lambda axis: -abs(a[1, axis]))
        way["axes"] = column, line, plane
        inverse = np.linalg.inv(a[:2][:, [column, line]])
        way["column"], way["line"] = inverse
        if n_bins > 1:
            way["plane"] = np.linalg.inv(a[:3, :3])[plane]
    return found


def _spline_taps(places: FloatArray, degree: int, scale: float) -> Array:
    """Return for each shift v = y + place the first pixel it reaches from y = 0 and the three weights times scale."""
    found = np.zeros(len(places), TAPS)
    nearest = np.floor(places + 0.5)
    f = places - nearest
    found["left"] = nearest - 1
    if degree == 1:
        weights = [np.maximum(-f, 0), 1 - abs(f), np.maximum(f, 0)]
    else:
        weights = [0.5 * (0.5 - f) ** 2, 0.75 - f**2, 0.5 * (0.5 + f) ** 2]
    found["weights"] = scale * np.stack(weights, axis=1)
    return found


def _one_tap(scale: float) -> Array:
    found = np.zeros(1, TAPS)
    found["weights"] = scale, 0, 0
    return found


def _on_device(xp: Any, table: Array) -> Array:
    """Copy structures, which CuPy has no type for, as bytes."""
    return xp.asarray(np.frombuffer(table.tobytes(), np.uint8))  # type: ignore[no-any-return]


def _turn(
    xp: Any, source: Array, target: Array, taps: Array, ranges: Array | None, *, to_lines: bool, n_along: int,
    border: int = 0, first: int = 0,
) -> None:  # fmt: skip
    """Turn planes (n, row, column) into lines (n, column with border, width), or lines into planes.

    ``n_along``: numbers of a line that are read or written, from ``first`` on. One taps for all planes, or their own.
    """
    planes, lines = (source, target) if to_lines else (target, source)
    (n_planes, n_rows, n_columns), table = planes.shape, _on_device(xp, taps)
    numbers = np.zeros((), TURN)
    for name, values in (("source", source), ("target", target), ("taps", table), ("ranges", ranges)):
        numbers[name] = 0 if values is None else address(values)
    numbers["n_rows"], numbers["n_columns"], numbers["n_along"] = n_rows, n_columns, n_along
    numbers["width"], numbers["border"], numbers["first"] = lines.shape[-1], border, first
    numbers["planes_of_taps"] = n_planes // len(taps)
    tiles = -(-n_columns // _TILE) * -(-(n_along if to_lines else n_rows) // _TILE)
    launch(
        f"tomography_turn<{str(to_lines).lower()}>", (tiles, n_planes), _ROW_THREADS, _TURN_BYTES, numbers
    )  # fmt: skip


def _run(xp: Any, name: str, geometry: Geometry, source: Array, target: Array, side: int, blocks: tuple[int, int],
         threads: int, shared: int) -> None:  # fmt: skip
    n_z, n_y, n_x = geometry.volume_shape
    maps = _on_device(xp, fixed_maps(geometry.affine))
    steps = None if geometry.aligned else _on_device(xp, ways(geometry.affine, geometry.n_bins))
    numbers = np.zeros((), ARGUMENTS)
    arrays = {"source": source, "target": target, "ranges": geometry.ranges, "maps": maps, "ways": steps}
    for field, values in arrays.items():
        numbers[field] = 0 if values is None else address(values)
    n_v, n_u = geometry.detector_shape
    counts = {
        "n_x": n_x, "n_y": n_y, "n_z": n_z, "width": geometry.width, "n_maps": len(geometry.affine),
        "n_bins": geometry.n_bins, "n_u": n_u, "n_v": n_v, "side": side, "lanes": geometry.lanes,
    }  # fmt: skip
    for field, number in counts.items():
        numbers[field] = number
    numbers["scale"] = geometry.scale
    launch(name, blocks, threads, shared, numbers)


def kernel_names() -> list[str]:
    """Return the C++ names of all variants of the kernels."""
    degrees, either = (1, 2), (False, True)
    names = [f"tomography_project_rows<{d}{_flags(a)}>" for d in degrees for a in either]
    names += [f"tomography_back_project_rows<{d}>" for d in degrees]
    names += [f"tomography_project_any<{d}{_flags(a, b)}>" for d in degrees for a in either for b in either]
    names += [f"tomography_back_project_any<{d}{_flags(a)}>" for d in degrees for a in either]
    return names + [f"tomography_{kind}<{str(a).lower()}>" for kind in ("turn", "step") for a in either]


def block_of(name: str) -> tuple[int, int]:
    """Return the threads and the bytes of shared memory of a kernel's blocks."""
    if name.startswith("tomography_project_any"):
        return 32 * _WARPS, _TILE_BYTES
    return _ROW_THREADS, _TURN_BYTES if name.startswith("tomography_turn") else 0


def _flags(*values: bool) -> str:
    return "".join(f", {str(value).lower()}" for value in values)


def project(volume: FloatArray, geometry: Geometry, moment: bool) -> FloatArray:
    """Return the projections (projection, bin, y, x) of ``volume`` (z, y, x) float32; ``moment`` weights by depth.

    Needs a second copy of the volume.
    """
    xp, (n_z, n_y, n_x), (n_v, n_u) = array_module(volume), geometry.volume_shape, geometry.detector_shape
    n = len(geometry.affine)
    columns = xp.zeros((n_z, n_x, geometry.width), np.float32)
    _turn(xp, volume, columns, _one_tap(1.0), geometry.ranges, to_lines=True, n_along=n_y)
    images = xp.empty((n, geometry.n_bins, n_v, n_u), np.float32)
    if not geometry.aligned:
        blocks = n * -(-n_u // _TILE), geometry.n_bins * -(-n_v // (_TILE * _WARPS))
        name = f"tomography_project_any<{geometry.degree}{_flags(moment, geometry.n_bins > 1)}>"
        _run(xp, name, geometry, columns, images, 0, blocks, 32 * _WARPS, _TILE_BYTES)
        return images  # type: ignore[no-any-return]
    lines = xp.empty((n, n_u, geometry.width), np.float32)
    blocks = n * -(-n_u // (_ROW_THREADS // geometry.lanes)), geometry.stripes
    name = f"tomography_project_rows<{geometry.degree}{_flags(moment)}>"
    _run(xp, name, geometry, columns, lines, 0, blocks, _ROW_THREADS, 0)
    taps = _spline_taps(geometry.affine[:, 1, 3], geometry.degree, geometry.scale)
    _turn(xp, lines, images.reshape(n, n_v, n_u), taps, None, to_lines=False, n_along=n_y)
    return images  # type: ignore[no-any-return]


def back_project(stack: FloatArray, geometry: Geometry) -> FloatArray:
    """Return the exact transpose of :func:`project` (without moment) of ``stack`` (projection, bin, y, x): (z, y, x).

    Needs a second copy of the volume.
    """
    xp, (n_z, n_y, n_x), (n_v, n_u) = array_module(stack), geometry.volume_shape, geometry.detector_shape
    n = len(geometry.affine)
    images, columns = stack.reshape(-1, n_v, n_u), xp.empty((n_z, n_x, geometry.width), np.float32)
    if geometry.aligned:
        taps = _spline_taps(geometry.affine[:, 1, 3], geometry.degree, geometry.scale)
        lines = xp.zeros((n, n_u + 2 * BORDER, geometry.width), np.float32)
        _turn(xp, images, lines, taps, None, to_lines=True, n_along=n_y, border=BORDER)
        blocks = -(-n_x * n_z // (_ROW_THREADS // geometry.lanes)), geometry.stripes
        name = f"tomography_back_project_rows<{geometry.degree}>"
        _run(xp, name, geometry, lines, columns, 0, blocks, _ROW_THREADS, 0)
    else:
        side = n_v + 2 * BORDER
        lines = xp.zeros((n * geometry.n_bins, n_u + 2 * BORDER, side), np.float32)
        _turn(
            xp, images, lines, _one_tap(geometry.scale), None, to_lines=True, n_along=n_v, border=BORDER, first=BORDER
        )
        blocks = -(-n_x * n_z // (_ROW_THREADS // 32)), -(-geometry.width // 32)
        name = f"tomography_back_project_any<{geometry.degree}{_flags(geometry.n_bins > 1)}>"
        _run(xp, name, geometry, lines, columns, side, blocks, _ROW_THREADS, 0)
    volume = xp.empty(geometry.volume_shape, np.float32)
    _turn(xp, columns, volume, _one_tap(1.0), geometry.ranges, to_lines=False, n_along=n_y)
    return volume  # type: ignore[no-any-return]


def proximal_step(
    point: FloatArray,
    before: FloatArray,
    gradient: FloatArray,
    step: float,
    threshold: float,
    momentum: float,
    positive: bool,
) -> tuple[FloatArray, FloatArray]:
    """Do as :func:`hpcrec.backend.kernels.volume.proximal_step` on a device, float32; 20 bytes a voxel."""
    xp = array_module(point)
    point, before, gradient = (xp.ascontiguousarray(a, np.float32) for a in (point, before, gradient))
    volume, ahead = (xp.empty(point.shape, np.float32) for _ in range(2))
    numbers = np.zeros((), STEP)
    arrays = {"point": point, "before": before, "gradient": gradient, "volume": volume, "ahead": ahead}
    for name, values in arrays.items():
        numbers[name] = address(values)
    numbers["n"] = point.size
    numbers["step"], numbers["threshold"], numbers["momentum"] = step, threshold, momentum
    blocks = -(-point.size // _ROW_THREADS), 1
    launch(f"tomography_step<{str(positive).lower()}>", blocks, _ROW_THREADS, 0, numbers)
    return volume, ahead
