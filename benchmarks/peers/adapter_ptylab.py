"""PtyLab: its PIE engines, one core, patterns one by one, positions rounded to whole pixels."""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np
import PtyLab
from PtyLab import Engines
from PtyLab.Monitor.Monitor import DummyMonitor
from task import Task

DISTANCE = 1.0


class Done(Exception):
    """Enough sweeps."""


class Watch(DummyMonitor):
    """Hands every sweep's object to the task."""

    figureUpdateFrequency = 1

    def __init__(self, task: Task, reconstruction: PtyLab.Reconstruction) -> None:
        self.task, self.reconstruction = task, reconstruction
        self.origin = np.mean(reconstruction.positions + reconstruction.Np // 2 - task.pixels, axis=0)

    def update(self, frame: object) -> None:
        if not len(self.reconstruction.error):
            return
        self.task.lap(self.reconstruction.object[0, 0, 0].prod(axis=0), self.origin)
        if not self.task.more():
            raise Done


def write(task: Task, path: Path) -> None:
    """Write the file that PtyLab loads, lengths in m."""
    detector_pixel = task.wavelength * 1e-10 * DISTANCE / (task.n * task.sampling * 1e-10)
    with h5py.File(path, "w") as file:
        file["ptychogram"] = task.patterns.astype(np.float32)
        file["encoder"] = task.positions * 1e-10
        file["wavelength"] = task.wavelength * 1e-10
        file["dxd"] = detector_pixel
        file["zo"] = DISTANCE
        file["entrancePupilDiameter"] = task.n / 3 * task.sampling * 1e-10


def main() -> None:
    task = Task()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.hdf5"
        write(task, path)
        data, reconstruction, params, _, _ = PtyLab.easyInitialize(path, operationMode="CPM", dummyMonitor=True)
    reconstruction.npsm, reconstruction.nslice = len(task.probe), task.n_slices
    reconstruction.dz, reconstruction.refrIndex = task.thickness * 1e-10, 1.0
    reconstruction.initialProbe, reconstruction.initialObject = "circ", "ones"
    reconstruction.initializeObjectProbe()
    start = np.broadcast_to(task.probe[None, None, :, None], reconstruction.probe.shape)
    reconstruction.probe = start.astype(np.complex64)
    reconstruction.object = np.ones_like(reconstruction.object, np.complex64)
    params.propagatorType, params.positionOrder = "Fraunhofer", "random"
    params.fftshiftSwitch, params.gpuSwitch = True, False
    engine = getattr(Engines, task.algorithm)(reconstruction, data, params, Watch(task, reconstruction))
    engine.numIterations = 100000
    if task.step:
        engine.betaObject = engine.betaProbe = task.step
    task.start()
    try:
        engine.reconstruct()
    except Done:
        task.save("ptylab", "1 core, whole pixels")


if __name__ == "__main__":
    main()
