"""Positions and defocus against truth: ``python benchmarks/geometry.py`` (needs the simulated nanocube).

Three tilts whose scan has 0.05 Å of jitter; the job's defocus is 15 Å off. Positions and defocus are refined. Where the
probe sees no atom a position cannot be found, so those over the particle stand apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize_scalar

from hpcrec.io.results import TiltResult, read_tilt_result, tilt_path
from hpcrec.physics.probe import aberrated_probe

DATA = Path(os.environ.get("HPCREC_DATA", "../shared/data")) / "nanocube" / "nanocube-small.h5"
TILTS = (4, 18, 30)
START = 85.0
REFINE = ["refine.positions.start_iteration=5", 'refine.aberrations.names=["C10"]']


def run(out: Path, settings: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "hpcrec",
        "run",
        "jobs/nanocube.toml",
        "--out",
        str(out),
        "--until",
        "ptychography",
    ]
    chosen = [f"data.path={DATA.resolve()}", f"data.tilts={list(TILTS)}", f"probe.defocus_angstrom={START}"]
    for setting in [*chosen, "ptychography.iterations=70", *settings]:
        command += ["--set", setting]
    subprocess.run(command, check=True, capture_output=True, timeout=900)


def defocus(result: TiltResult) -> float:
    """Return the underfocus at the middle of the slices of the aberrated aperture most like the probe."""
    probe, depth = result.probe[0], 0.5 * (len(result.obj) - 1) * result.slice_thickness

    def unlike(value: float) -> float:
        wave = aberrated_probe(probe.shape, result.sampling, result.wavelength, 0.03, {"C10": -value - depth})
        return -float(np.abs(np.fft.ifft2(np.fft.fft2(wave).conj() * np.fft.fft2(probe))).max())

    return float(minimize_scalar(unlike, bounds=(40, 160), method="bounded").x)


def position_errors(result: TiltResult, nominal: np.ndarray, jitter: np.ndarray) -> tuple[float, float]:
    """Return the rms (Å, along one axis) of what is left: over the particle, and everywhere."""
    left = result.positions - nominal - jitter
    seen = gaussian_filter(np.angle(result.obj).sum(axis=0), 2.0 / result.sampling[0])
    pixels = np.rint((result.positions - result.origin) / result.sampling).astype(int)
    value = seen[pixels[:, 0], pixels[:, 1]]
    over = value > 0.5 * np.percentile(value, 95)
    return tuple(float((part - part.mean(axis=0)).std()) for part in (left[over], left))  # type: ignore[return-value]


def main() -> None:
    with h5py.File(DATA) as file, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("tilt  refined  data error  positions over particle (all), rms Å  defocus found (true), Å")
        for refined, settings in (("no", []), ("yes", REFINE)):
            run(folder / refined, settings)
            for tilt in TILTS:
                result = read_tilt_result(tilt_path(folder / refined / "checkpoints", tilt))
                over, everywhere = position_errors(
                    result, file["scan_positions_A"][()], file["truth/scan_jitter_A"][tilt]
                )
                true = file["truth/defocus_A"][tilt]
                print(
                    f"{tilt:4}  {refined:>7}  {result.data_error[-1]:10.5f}  {over:23.4f} ({everywhere:.4f})"
                    f"  {defocus(result):26.1f} ({true:.1f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
