"""The tomography's loops on one GPU, correctness first: ``python -m benchmarks.gpu_projector [--sizes 256 512]``.

Projections, moments and adjoints of small volumes are first compared with the host's in double precision, the solvers'
step and BM3D with the host's own; what is off by more than its bound ends the run. Then updates a second (a voxel in a
projection) of a cube of ``--sizes`` voxels a side at ``--tilts`` tilts, "along rows" and at "any pose" as
``benchmarks.projector`` has them on the processor; the solvers' step, the proximal map of the total variation and BM3D;
and an iteration of FISTA as a job runs it. Medians of repeated calls, by the device's own clock.
No GPU has run it yet.

``memory``: the share of what a copy of a gigabyte reaches, of the bytes that cannot be spared: the volume read,
written turned and read once (back: written, read, written), and the stack in both forms. ``issue``: the share of one
instruction a clock and lane, of those that :mod:`hpcrec.backend.projector` lists, for sm_90 and not measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from benchmarks.limits import machine
from benchmarks.table import add_json_option, report
from hpcrec.backend import device
from hpcrec.backend.kernels.volume import proximal_step
from hpcrec.engines.fista import Fista, FistaOptions
from hpcrec.errors import DeviceError
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.models.tomography import TomographyModel
from hpcrec.objectives.regularizers import flatten_variation
from hpcrec.operators.projection import Projector
from hpcrec.tomography.bm3d import bm3d
from hpcrec.tomography.executor import InlineExecutor
from hpcrec.tomography.reconstruct import iterate
from hpcrec.tomography.slabs import SlabVolume

# Of the largest value: sums of some hundred terms in single precision; BM3D's choices may differ by rounding
BOUNDS: Final = {
    "forward": 1e-6,
    "moment": 1e-6,
    "adjoint": 1e-6,
    "dot": 1e-6,
    "again": 0.0,
    "step": 1e-6,
    "BM3D": 1e-2,
}
INSTRUCTIONS: Final = {
    ("along rows", "forward"): 17, ("along rows", "adjoint"): 11, ("any pose", "forward"): 200,
    ("any pose", "adjoint"): 107,
}  # fmt: skip
SHAPES: Final = [((40, 90, 37), (100, 45), 1), ((20, 33, 70), (30, 64), 1), ((24, 40, 25), (40, 30), 4)]
PLANE, NOISY, ITERATIONS = 2048, 512, 5


def poses(kind: str, n: int) -> tuple[Pose, ...]:
    """Return tilts from −70° to 70°, turned by 0.3° in the plane and out of it unless along rows."""
    turns = 0.005 * np.random.default_rng(0).normal(size=(n, 2)) * (kind == "any pose")
    tilts = np.deg2rad(np.linspace(-70, 70, n))
    return tuple(Pose(rotation=rotation_from_angles(a, t, b), shift=(0.3, 0.2)) for t, (a, b) in zip(tilts, turns))


def off(found: Any, wanted: Any) -> float:
    """Return the largest difference of a device's array over the largest value of the host's."""
    return float(np.abs(found.get() - wanted).max() / np.abs(wanted).max())


def errors(cupy: Any) -> list[dict[str, object]]:
    """Return what the device's forms are off from the host's."""
    rng, rows = np.random.default_rng(1), []
    for shape, detector, n_bins in SHAPES:
        for kind in ("along rows", "any pose"):
            whole, there = (
                Projector(shape, 0.4, detector, poses(kind, 7), n_bins=n_bins, dtype=d)
                for d in (np.float64, np.float32)
            )
            volume = rng.normal(size=shape).astype(np.float32)
            stack = rng.normal(size=whole.range).astype(np.float32)
            moved, images = cupy.asarray(volume), cupy.asarray(stack)
            forward, back = there.forward(moved), there.adjoint(images)
            left, right = np.vdot(forward.get().astype(float), stack), np.vdot(volume.astype(float), back.get())
            again = off(there.forward(moved), forward.get()) + off(there.adjoint(images), back.get())
            rows.append(
                {
                    "case": f"{kind}, {n_bins} bins, {shape}",
                    "forward": off(forward, whole.forward(volume.astype(float))),
                    "moment": off(there.depth_moment(moved), whole.depth_moment(volume.astype(float))),
                    "adjoint": off(back, whole.adjoint(stack.astype(float))),
                    "dot": float(abs(left - right) / (np.linalg.norm(forward.get()) * np.linalg.norm(stack))),
                    "again": again,
                }
            )
    parts = [rng.normal(size=(30, 40, 50)).astype(np.float32) for _ in range(3)]
    found, wanted = (proximal_step(*a, 0.1, 0.01, 0.5, True)[0] for a in (map(cupy.asarray, parts), parts))
    rows.append({"case": "FISTA step", "step": off(found, wanted)})
    noisy = noisy_image(128)
    rows.append({"case": "BM3D", "BM3D": off(bm3d(cupy.asarray(noisy), 0.2), bm3d(noisy, 0.2))})
    return rows


def noisy_image(side: int) -> Any:
    """Return waves with a noise of 0.2."""
    y, x = np.indices((side, side), dtype=np.float32)
    noise = np.random.default_rng(2).normal(size=(side, side))
    return (np.sin(y / 9) * np.sin(x / 7) + 0.2 * noise).astype(np.float32)


def seconds_of(cupy: Any, work: Callable[[], object], n_repeats: int = 5) -> float:
    """Return the median time of a call by the device's clock, after two that are not counted."""
    times = []
    for i in range(n_repeats + 2):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        if i > 1:
            times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    return statistics.median(times)


def limits(cupy: Any) -> dict[str, float]:
    """Return bytes a second of a copy, and instructions a second of all lanes at the device's highest clock."""
    source = cupy.zeros(2**28, np.float32)
    target = cupy.zeros_like(source)

    def copy() -> None:
        target[...] = source

    attributes = cupy.cuda.Device().attributes
    return {
        "memory": 2 * source.nbytes / seconds_of(cupy, copy),
        "issue": 1e3 * attributes["ClockRate"] * attributes["MultiProcessorCount"] * 128,
    }


def projector_rows(cupy: Any, size: int, n_tilts: int, roofs: dict[str, float]) -> list[dict[str, object]]:
    """Return a row for projection and adjoint, both ways."""
    volume = cupy.asarray(np.random.default_rng(3).random((size,) * 3, dtype=np.float32))
    updates, rows = size**3 * n_tilts, []
    for kind in ("along rows", "any pose"):
        projector = Projector((size,) * 3, 1.0, (size, size), poses(kind, n_tilts))
        stack = projector.forward(volume)
        for way, call in (
            ("forward", partial(projector.forward, volume)),
            ("adjoint", partial(projector.adjoint, stack)),
        ):
            seconds = seconds_of(cupy, call)
            least = 3 * volume.nbytes + 3 * stack.nbytes
            rows.append(
                {
                    "case": f"{kind}, {way}",
                    "size": size,
                    "seconds": seconds,
                    "G/s": updates / seconds / 1e9,
                    "memory": least / roofs["memory"] / seconds,
                    "issue": INSTRUCTIONS[kind, way] * updates / roofs["issue"] / seconds,
                }
            )
    return rows


def pass_rows(cupy: Any, size: int, roofs: dict[str, float]) -> list[dict[str, object]]:
    """Return rows for passes over volumes and images."""
    rng = np.random.default_rng(4)
    volumes = [cupy.asarray(rng.random((size,) * 3, dtype=np.float32)) for _ in range(3)]
    plane, noisy = cupy.asarray(rng.random((PLANE, PLANE), dtype=np.float32)), cupy.asarray(noisy_image(NOISY))
    cases: dict[str, tuple[Callable[[], object], float, float]] = {
        "FISTA step": (partial(proximal_step, *volumes, 0.1, 0.01, 0.5, True), size**3, 20.0 * size**3),
        "TV, an iteration": (partial(flatten_variation, plane, 0.1, (0, 1), ITERATIONS), ITERATIONS * PLANE**2, 0.0),
        "BM3D": (partial(bm3d, noisy, 0.2), NOISY**2, 0.0),
    }
    rows = []
    for name, (call, units, least) in cases.items():
        seconds = seconds_of(cupy, call, 3)
        row: dict[str, object] = {"case": name, "seconds": seconds, "G/s": units / seconds / 1e9}
        rows.append(row | {"memory": least / roofs["memory"] / seconds} if least else row)
    return rows


def iteration_row(cupy: Any, size: int, n_tilts: int) -> dict[str, object]:
    """Return the row of FISTA's iterations at any pose, misfit and filter included, volume and stack on the device."""
    model = TomographyModel(
        volume_shape=(size,) * 3,
        voxel_size=1.0,
        detector_shape=(size, size),
        poses=poses("any pose", n_tilts),
        blur=0.5,
    )
    data = np.random.default_rng(5).random((n_tilts, size, size), dtype=np.float32)
    there, weights = cupy.asarray(data), cupy.ones_like(cupy.asarray(data))
    volume, solver = SlabVolume(model, InlineExecutor(device="gpu")), Fista(FistaOptions(sparsity=0.0))

    def work() -> None:
        iterate(volume, solver, model, there, weights, n_iterations=ITERATIONS, norm=1e6, scale=0.0)

    seconds = seconds_of(cupy, work, 3) / ITERATIONS
    return {"case": "FISTA iteration", "size": size, "seconds": seconds, "G/s": 2 * size**3 * n_tilts / seconds / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--tilts", type=int, default=36)
    add_json_option(parser)
    chosen = parser.parse_args()
    try:
        cupy, about = device.use_device("gpu").module, machine() | {"gpu": device.describe()}
    except DeviceError as fault:
        sys.exit(str(fault))
    print(about["gpu"])
    checked = errors(cupy)
    report("gpu_projector_errors", about, checked)
    wrong = [f"{row['case']}: {name}" for row in checked for name in BOUNDS if not row.get(name, 0) <= BOUNDS[name]]
    if wrong:
        sys.exit(f"no speed is measured of what is wrong: {'; '.join(wrong)}")
    roofs, rows = limits(cupy), []
    for size in chosen.sizes:
        rows += projector_rows(cupy, size, chosen.tilts, roofs)
        rows.append(iteration_row(cupy, size, chosen.tilts))
    rows += pass_rows(cupy, chosen.sizes[0], roofs)
    rows += [{"case": f"limit: {name}", "G/s": rate / 1e9} for name, rate in roofs.items()]
    report("gpu_projector", about, rows, chosen.json)


if __name__ == "__main__":
    main()
