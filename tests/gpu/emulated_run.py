"""Runs a job on the processor and on the rehearsal's GPU: ``python emulated_run.py FOLDER PIXELS KEY=VALUE ...``.

Prints, as JSON, the kernels that were launched and how far each array of ``projections.h5`` is off, of its largest
value.
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

from benchmarks.gpu.rehearsal import pretended_cupy
from hpcrec.backend import launch
from hpcrec.cli import main as command
from hpcrec.data.experiment import (
    DetectorOptions,
    MultisliceOptions,
    OpticsOptions,
    ScanOptions,
    SimulationOptions,
    TiltOptions,
)
from hpcrec.data.specimen import SpecimenOptions
from hpcrec.io.simulated import write_simulated_series

JOB = """
version = 1
name = "emulated"
[data]
format = "hdf5"
path = "{path}"
patterns = "diffraction"
positions = "scan_positions_A"
tilt_angles = "tilt_angles_deg"
detector_pixel_inverse_angstrom = "attribute:detector_pixel_invA"
tilts = [0]
[beam]
energy_ev = 200e3
[probe]
semiangle_mrad = 30.0
defocus_angstrom = 50.0
modes = 2
[ptychography]
engine = "gradient"
iterations = 3
slices = 2
slice_thickness_angstrom = 4
"""


def simulate(path: Path, pixels: int) -> None:
    """Write 16 patterns of few electrons."""
    chosen = SimulationOptions(
        specimen=SpecimenOptions(kind="co3o4_cube", n_cells=(1, 1, 1)),
        optics=OpticsOptions(defocus_angstrom=50.0),
        scan=ScanOptions(shape=(4, 4), step_angstrom=1.6),
        detector=DetectorOptions(pixels=pixels, pixel_inverse_angstrom=5.0 / pixels if pixels <= 64 else 0.08),
        tilt=TiltOptions(first_deg=0.0, last_deg=0.0, n_tilts=1),
        multislice=MultisliceOptions(grid_pixels=pixels * 3 // 2, n_phonons=0),
        dose_electrons_per_angstrom2=300.0,
    )
    write_simulated_series(path, chosen)


def run(job: Path, out: Path, device: str, words: list[str]) -> dict[str, np.ndarray]:
    """Run the command in this process; return the arrays of numbers that it found."""
    asked = [f"parallel.device={device}", *words]
    sys.argv = ["hpcrec", "run", str(job), "--out", str(out), "--until", "ptychography"]
    sys.argv += [part for word in asked for part in ("--set", word)]
    try:
        command.main()
    except SystemExit as end:
        if end.code:
            raise
    found = {}
    with h5py.File(out / "projections.h5") as file:
        file.visititems(lambda name, one: found.update({name: one[()]}) if isinstance(one, h5py.Dataset) else None)
    return {name: a for name, a in found.items() if getattr(a, "size", 0) and a.dtype.kind in "fc"}


def main() -> None:
    """Do both."""
    folder, pixels, words = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    series, job = folder / "series.h5", folder / "job.toml"
    simulate(series, pixels)
    job.write_text(JOB.format(path=series))
    wanted = run(job, folder / "cpu", "cpu", words)
    pretended_cupy()
    compiled, names = launch._compiled, set()

    def noted(kernels: str, name: str, device: int) -> object:
        names.add(name)
        return compiled(kernels, name, device)

    launch._compiled = noted
    found = run(job, folder / "gpu", "gpu", words)
    assert found.keys() == wanted.keys()
    errors = {name: float(np.abs(found[name] - a).max() / (np.abs(a).max() or 1.0)) for name, a in wanted.items()}
    sys.stdout.write("\n" + json.dumps({"kernels": sorted(names), "errors": errors}) + "\n")


main()
