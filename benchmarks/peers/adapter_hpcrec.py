"""hpcrec on one data set, from its job file to the objects of all sweeps; one process, or each rank of ``mpiexec``."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
from pathlib import Path

import numpy as np
from task import Task

from hpcrec.io.base import open_series
from hpcrec.parallel import mpi
from hpcrec.run.config import load_job
from hpcrec.run.means import Means
from hpcrec.run.runner import TiltRun
from hpcrec.run.start import common_grid

JOB = """
version = 1
name = "peers"
[data]
format = "numpy"
path = "{task.path}"
positions = "positions"
probe = "probe"
pixel_size_angstrom = {task.sampling}
[beam]
energy_ev = {task.energy_ev}
[probe]
source = "file"
modes = {modes}
[ptychography]
engine = "{engine}"
batch_size = {task.batch}
slices = {task.n_slices}
{thickness}
{options}
[parallel]
exchange = "replicated"
threads = {threads}
"""
# A step of 0 leaves the engine its own choice
STEPS = {"gradient": "gradient.object_step = {0}\ngradient.probe_step = {0}", "lsqml": "lsqml.step_share = {0}"}
STEPS["epie"] = "epie.object_step = {0}\nepie.probe_step = {0}"


def main() -> None:
    task, world = Task(), mpi.world()
    engine, _, way = task.algorithm.partition(" ")
    options = STEPS[engine].format(task.step) if task.step else ""
    if way == "whole":
        options += f"\nwhole_pixel_iterations = {10**6}"
    threads = task.threads // world.size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.toml"
        path.write_text(
            JOB.format(
                task=task,
                modes=len(task.probe),
                thickness=f"slice_thickness_angstrom = {task.thickness}" if task.n_slices > 1 else "",
                engine=engine,
                options=options,
                threads=threads,
            )
        )
        job, _ = load_job(path)
        with open_series(job.data) as series:
            where = (common_grid(job, series), 0, world, Path(folder), lambda event: None)
            run = TiltRun(job, series, *where, means=Means(threads=threads))
            origin = run.setup.grid.to_pixels(np.zeros(2))
            world.barrier()
            task.start()
            while world.broadcast(task.more()):
                run.sweep()
                world.barrier()
                task.lap(run.state.obj.prod(axis=0), origin)
            run.close()
    if world.rank == 0:
        task.save("hpcrec", f"{world.size} ranks of {threads} threads")


if __name__ == "__main__":
    main()
