"""One interpreter's projector of parallel beams, timed on request: a child of ``benchmarks/projector.py``.

Says on its first line which programs it has, then answers each line "PROGRAM WAY" with the seconds of one call. Needs
NumPy and what it measures only: it runs in other programs' environments.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np


def scikit_image(size: int, n_slices: int, tilts: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return ``radon`` and ``iradon`` (no filter, linear) of slices, float32, one thread."""
    from skimage.transform import iradon, radon

    inside = np.hypot(*(np.indices((size, size)) - size // 2)) < size // 2 - 1  # what radon asks for
    image, angles = np.random.default_rng(0).random((size, size), np.float32) * inside, np.rad2deg(tilts)
    sinogram = radon(image, angles, circle=True)
    return {
        "forward": lambda: [radon(image, angles, circle=True) for _ in range(n_slices)],
        "adjoint": lambda: [iradon(sinogram, angles, filter_name=None, circle=True) for _ in range(n_slices)],
    }


def astra(size: int, n_slices: int, tilts: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return FP and BP of slices with the projector 'linear', float32, one thread."""
    import astra as toolbox

    plane = toolbox.create_vol_geom(size, size)
    rays = toolbox.create_proj_geom("parallel", 1.0, size, tilts)
    projector = toolbox.create_projector("linear", rays, plane)
    image = np.random.default_rng(0).random((size, size), np.float32)
    volume, sinogram = toolbox.data2d.create("-vol", plane, image), toolbox.data2d.create("-sino", rays, 0)

    def algorithm(kind: str, result: str) -> Callable[[], object]:
        chosen = toolbox.astra_dict(kind)
        chosen |= {"ProjectorId": projector, "ProjectionDataId": sinogram, result: volume}
        made = toolbox.algorithm.create(chosen)
        return lambda: [toolbox.algorithm.run(made) for _ in range(n_slices)]

    return {"forward": algorithm("FP", "VolumeDataId"), "adjoint": algorithm("BP", "ReconstructionDataId")}


def main() -> None:
    size, n_slices = int(sys.argv[1]), int(sys.argv[2])
    tilts = np.deg2rad(np.linspace(-70, 70, int(sys.argv[3])))
    ways: dict[str, dict[str, Callable[[], object]]] = {}
    for name, make in (("scikit-image", scikit_image), ("ASTRA", astra)):
        try:
            ways[name] = make(size, n_slices, tilts)
        except ImportError:
            continue
    print(",".join(ways), flush=True)
    for line in sys.stdin:
        name, _, way = line.strip().partition(" ")
        start = time.perf_counter()
        ways[name][way]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
